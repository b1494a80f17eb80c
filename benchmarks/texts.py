"""A small BERT on generated reviews, without and with EGT: accuracy, consistency, faithfulness, speed.

Usage: python -m benchmarks.texts [SEED ...]   (resumable: a run that is in benchmarks/results/texts.json is not trained
again; default seeds 0 1 2; the table of means in docs/method.md is written anew)

The shop's name agrees with the class in 80 % of the training reviews (the shortcut); in the second test set it says nothing.
Every loss is trained with the same seed, data and number of steps; nothing was chosen on the test sets.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import exitlens as xl
from exitlens.delivery.speed import compare_adaptive

RESULTS = Path(__file__).parent / "results" / "texts.json"
METHOD = Path(__file__).parent.parent / "docs" / "method.md"
START, END = "<!-- texts: written by benchmarks/texts.py -->", "<!-- end of texts -->"
EPOCHS = 8
FIXED = {"exit_weights": (1.0, 1.0, 1.0, 1.0), "ramp_share": 0.6}  # the defaults have changed since
LOSSES = {
    "without": xl.EGTLoss(weight=0.0, **FIXED),
    "attention, js": xl.EGTLoss(**FIXED),
    "evidence, pearson": xl.EGTLoss(weight=0.5, of="evidence", distance="pearson", **FIXED),
}
CONFIG = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}


def run(loss: xl.EGTLoss, seed: int) -> dict:
    torch.set_num_threads(1)
    train, validation, calibration, test = (xl.load_reviews(s) for s in ("train", "validation", "calibration", "test"))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        plain = xl.build_backbone(f"hf:{folder}", 2, vocabulary=train.preprocess.vocabulary_size)
    net = xl.attach(plain, 3, 2, train.first(1).inputs)
    started = time.perf_counter()
    xl.fit(net, train, validation, loss=loss, epochs=EPOCHS, learning_rate=2e-3, seed=seed, amp=False, progress=False)
    values: dict = {"exits": list(net.info.at), "training_seconds": time.perf_counter() - started}
    policy = xl.calibrate(xl.collect(net, calibration), max_accuracy_drop=0.005)
    sets = {"agreeing": test, "shop says nothing": xl.load_reviews("test", shop_agreement=0.5)}
    for name, data in sets.items():
        report = xl.evaluate(xl.collect(net, data), policy)
        checks = xl.faithfulness(net, data)
        values[name] = {
            "accuracy": [row.accuracy for row in report.exits],
            "skill": [row.consistency["cc"]["skill"] for row in report.exits[:-1]],
            "kl": [row.consistency["kl"]["value"] for row in report.exits[:-1]],
            "deletion": checks.deletion,
            "deletion_random": checks.deletion_random,
            "energy_in_mask": checks.energy_in_mask,
            "routed": {"accuracy": report.accuracy, "drop": report.accuracy_drop, "cost": report.cost},
            "exit_shares": report.exit_shares,
        }
    with torch.no_grad():
        outs = net(test.first(500).inputs)
    padding = test.first(500).attention_mask == 0
    values["padding_attention"] = max(out.attention[padding].max().item() for out in outs)
    values["entropy_of_uniform"] = [spread(out.attention, ~padding) for out in outs]
    values["speed"] = {
        f"batch_{size}": compare_adaptive(plain, net, policy, test.first(256).inputs, size).to_dict() for size in (1, 64)
    }
    return values


def spread(attention: torch.Tensor, real: torch.Tensor) -> float:
    """Mean entropy of the maps over that of a uniform map on the same tokens: 1 looks nowhere in particular."""
    entropy = torch.special.entr(attention).sum(1)
    return (entropy / (real.sum(1) - 1).log()).mean().item()  # the class token gets no attention


def table(found: dict) -> str:
    """Means (and the range over seeds) as Markdown, one row a loss."""
    lines = [
        "| loss | accuracy, exit 0 | final | shop says nothing, final | skill, exit 0 | deletion drop, exit 0 | final "
        "| random |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in LOSSES:
        runs = [values for key, values in found.items() if key.startswith(f"{name}, seed")]
        main, other = [run["agreeing"] for run in runs], [run["shop says nothing"] for run in runs]
        cells = [percent([m["accuracy"][0] for m in main]), percent([m["accuracy"][-1] for m in main])]
        cells += [percent([o["accuracy"][-1] for o in other]), number([m["skill"][0] for m in main])]
        cells += [number([m["deletion"][k] for m in main]) for k in (0, -1)]
        lines.append("| " + " | ".join([name, *cells, number([m["deletion_random"][0] for m in main])]) + " |")
    return "\n".join(lines)


def percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def number(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in map(int, sys.argv[1:] or ("0", "1", "2")):
        for name, loss in LOSSES.items():
            key = f"{name}, seed {seed}"
            if key not in found:
                found[key] = run(loss, seed)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            values = found[key]["agreeing"]
            accuracy = " ".join(f"{100 * a:.1f}" for a in values["accuracy"])
            speeds = ", ".join(f"{s['batch_size']}: {s['speedup']:.2f}x" for s in found[key]["speed"].values())
            print(
                f"{key}: accuracy {accuracy}; routed cost {values['routed']['cost']:.2f}; faster at batch {speeds}",
                flush=True,
            )
    text = METHOD.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    METHOD.write_text(f"{before}\n\n{table(found)}\n\n{after}")


if __name__ == "__main__":
    main()
