"""A small BERT on generated reviews, without and with EGT: accuracy, consistency, faithfulness, speed.

Usage: python -m benchmarks.texts.generated [SEED ...]   (resumable: a run that is in benchmarks/results/texts.json is not trained
again; default seeds 0 1 2; the table of means is written anew where a page has the marker of texts)

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
from benchmarks.markdown import fill, table
from benchmarks.store import RESULTS, write_atomically
from exitlens.delivery.bench.benchmark import compare_adaptive

KEPT = RESULTS / "texts.json"
EPOCHS = 8
FIXED = {"exit_weights": (1.0, 1.0, 1.0, 1.0), "ramp_share": 0.6}  # the defaults have changed since
LOSSES = {
    "without": xl.EGTLoss(weight=0.0, **FIXED),
    "attention, js": xl.EGTLoss(target="attention", reach="network", **FIXED),
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
    values["entropy_of_uniform"] = [measure_entropy(out.attention, ~padding) for out in outs]
    values["speed"] = {
        f"batch_{size}": compare_adaptive(plain, net, policy, test.first(256).inputs, size).to_dict() for size in (1, 64)
    }
    return values


def measure_entropy(attention: torch.Tensor, real: torch.Tensor) -> float:
    """Mean entropy of the maps over that of a uniform map on the same tokens: 1 looks nowhere in particular."""
    entropy = torch.special.entr(attention).sum(1)
    return (entropy / (real.sum(1) - 1).log()).mean().item()  # the class token gets no attention


def texts_table(found: dict) -> list[str]:
    """Means (and the range over seeds), a row for each loss."""
    head = [
        "loss",
        "accuracy, exit 0",
        "final",
        "shop says nothing, final",
        "skill, exit 0",
        "deletion drop, exit 0",
        "final",
    ]
    rows = []
    for name in LOSSES:
        runs = [values for key, values in found.items() if key.startswith(f"{name}, seed")]
        main, other = [run["agreeing"] for run in runs], [run["shop says nothing"] for run in runs]
        cells = [show_percent([m["accuracy"][0] for m in main]), show_percent([m["accuracy"][-1] for m in main])]
        cells += [show_percent([o["accuracy"][-1] for o in other]), show([m["skill"][0] for m in main])]
        cells += [show([m["deletion"][k] for m in main]) for k in (0, -1)]
        rows.append([name, *cells, show([m["deletion_random"][0] for m in main])])
    return table([*head, "random"], rows)


def show_percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def show(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in map(int, sys.argv[1:] or ("0", "1", "2")):
        for name, loss in LOSSES.items():
            key = f"{name}, seed {seed}"
            if key not in found:
                found[key] = run(loss, seed)
                write_atomically(KEPT, json.dumps(found, indent=1) + "\n")
            values = found[key]["agreeing"]
            accuracy = " ".join(f"{100 * a:.1f}" for a in values["accuracy"])
            speeds = ", ".join(f"{s['batch_size']}: {s['speedup']:.2f}x" for s in found[key]["speed"].values())
            print(
                f"{key}: accuracy {accuracy}; routed cost {values['routed']['cost']:.2f}; faster at batch {speeds}",
                flush=True,
            )
    fill("texts", texts_table(found))


if __name__ == "__main__":
    main()
