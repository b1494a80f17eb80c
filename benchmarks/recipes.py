"""Short trials of recipes for pretrained bodies, on validation data alone: docs/guides/pretrained.md.

Cells are KIND/TRIAL-SEED. pictures: EfficientNet-Lite0 with ImageNet weights at 96 pixels, two pictures of each training drawing of
``benchmarks.drawings``. reviews: all-MiniLM-L6-v2 on the first 600 training sentences of ``benchmarks.reviews``, judged by 400.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import exitlens as xl
from benchmarks.drawings import BACKBONE, find_weights, load_pictures, open_folder
from benchmarks.harness import Job, Study, join_means, list_by_seed, table, use_one_thread
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import PICTURES, reviews
from exitlens.types.settings import RECIPES

SIZE, PICTURES_OF_A_DRAWING, REVIEWS, VALIDATION = 96, 2, 600, 400


def rates(body: float, heads: float, **changes: Any) -> dict[str, Any]:
    start: dict[str, Any] = {"warm_up": 0.1, "layer_decay": 1.0, "batch_norm": "update", "augment": "none"}
    return {"recipe": "pretrained", "learning_rate": body, "head_learning_rate": heads} | start | changes


TRIALS: dict[str, dict[str, Any]] = {  # arguments of ``fit`` by title; "plain" trains the network without exits
    **{f"one rate, {word}": {"recipe": "scratch", "learning_rate": float(word)} for word in ("4e-3", "1e-3", "2e-4")},
    **{
        f"body {body}, heads {heads}": rates(float(body), float(heads))
        for body, heads in (("1e-3", "1e-2"), ("5e-4", "5e-3"), ("2e-4", "4e-3"), ("2e-4", "1e-2"), ("5e-5", "4e-3"))
    },
    "plain, body 1e-3, classifier 1e-2": rates(1e-3, 1e-2),
    "plain, body 2e-4, classifier 4e-3": rates(2e-4, 4e-3),
    "body 1e-3, heads 1e-2, warm-up 0.3": rates(1e-3, 1e-2, warm_up=0.3),
    "body 1e-3, heads 1e-2, statistics kept": rates(1e-3, 1e-2, batch_norm="keep"),
    "body 2e-4, heads 4e-3, layer decay 0.75": rates(2e-4, 4e-3, layer_decay=0.75),
    "body 5e-4, heads 1e-2": rates(5e-4, 1e-2),
    "body 5e-4, heads 1e-2, crop and flip": rates(5e-4, 1e-2, augment="crop"),
}
SKIPPED = {  # trials that make no sense for a kind, or were given up
    "pictures": ("one rate, 4e-3", "one rate, 2e-4", "body 5e-5, heads 4e-3"),
    "reviews": ("plain, ", "body 1e-3, ", "body 5e-4, heads 1e-2"),
}
ONE_SEED = {"pictures": ("warm-up", "statistics kept", "layer decay")}


def list_cells(quick: bool = False) -> dict[str, Job]:
    seeds = {
        f"{kind}/{trial}": 1 if quick or any(word in trial for word in ONE_SEED.get(kind, ())) else 3
        for kind in OPEN
        for trial in TRIALS
        if not trial.startswith(SKIPPED[kind])
    }
    return list_by_seed(partial(measure, epochs=1 if quick else 3), seeds)


def open_pictures() -> tuple[torch.nn.Module, xl.data.ImageSet, xl.data.ImageSet]:
    parts = (("train", PICTURES_OF_A_DRAWING), ("validation", None))
    train, validation = (load_pictures(open_folder(PICTURES), split, SIZE, most)[0] for split, most in parts)
    body = xl.build_backbone(BACKBONE, len(train.classes))
    xl.load_weights(body, find_weights())
    return body, train, validation


def open_reviews() -> tuple[torch.nn.Module, xl.data.TextSet, xl.data.TextSet]:
    task = reviews(0)
    return task.build(), task.train.first(REVIEWS), task.validation.first(VALIDATION)  # type: ignore[attr-defined]


OPEN = {"pictures": open_pictures, "reviews": open_reviews}


def measure(kind: str, trial: str, seed: int, epochs: int) -> Tree:
    use_one_thread()
    torch.manual_seed(seed)
    is_plain = trial.startswith("plain")
    plain, train, validation = OPEN[kind]()
    example, head = train.first(1).inputs, "context" if kind == "pictures" else "evidence"
    exits: dict[str, Any] = {"at": [], "final": "keep"} if is_plain else {"at": 3, "head": head}
    net = xl.attach(plain, num_classes=len(train.classes), example=example, **exits)
    net.describe(preprocess=train.preprocess)
    loss = xl.EGTLoss(weight=0.0) if is_plain else xl.EGTLoss()
    settings = {"epochs": epochs, "batch_size": 32, "seed": seed, "progress": False, **TRIALS[trial]}
    result = xl.fit(net, train, validation, loss=loss, **settings)
    return {"accuracy": [round(value, 4) for value in result.history[-1]["accuracy"]]}


def write_trials(kind: str, runs: Runs) -> list[str]:
    rows = []
    for trial in TRIALS:
        if measured := list_seeds(runs, f"{kind}/{trial}"):
            accuracy = join_means([run["accuracy"] for run in measured], 1, 100).split(" / ")
            rows.append([trial, *[""] * (4 - len(accuracy)), *accuracy, str(len(measured))])
    return table(["trial", "exit 0", "exit 1", "exit 2", "final", "seeds"], rows)


def write_values(_: Runs) -> list[str]:
    scratch, pretrained = (asdict(RECIPES[name]) for name in ("scratch", "pretrained"))
    rows = [
        [f"`{name}`", *("the same" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in pair)]
        for name, pair in ((name, (scratch[name], pretrained[name])) for name in scratch)
    ]
    return table(["value", "`scratch`", "`pretrained`"], rows)


TABLES = {"recipe-values": write_values} | {f"recipes-{kind}": partial(write_trials, kind) for kind in OPEN}
STUDY = Study("recipes", list_cells, tables=TABLES)
