"""One run: trains a small residual network of series with and without exits, and measures answers, cost and maps."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.backbones.networks.convolutional import ResNet1d
from benchmarks.series.tasks import Task

EGT, WITHOUT, PLAIN = "egt", "without", "plain"
SHARPNESS = 1.15  # chosen on validation data of another seed, see docs/measured/series.md
LOSSES: dict[str, xl.EGTLoss | None] = {
    PLAIN: None,
    WITHOUT: xl.EGTLoss(weight=0.0),
    EGT: xl.EGTLoss(target="mean", sharpness=SHARPNESS),
}
WIDTHS = (24, 32, 48, 64)
AT = ("blocks.0", "blocks.1", "blocks.2")
MOST_LOST = 0.005  # accuracy, on validation data
KEPT = ("deletion_share", "deletion_share_error", "randomised_cc", "energy_in_mask", "pointing_game")


def run(task: Task, condition: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains (or goes on training) and measures one network."""
    loss, net = choose_loss(task, condition), build_network(task, condition, seed)
    how: dict[str, Any] = {"epochs": task.epochs, "batch_size": task.batch_size, "seed": seed, "amp": False}
    more: dict[str, Any] = {"out_dir": folder / "fit", "resume": True, "progress": False}
    done = xl.fit(net, task.train, task.validation, loss=loss, **how, **more)
    started = time.perf_counter()
    found = measure(net, task)
    sizes = {"train": len(task.train), "validation": len(task.validation), "steps": task.train.values.shape[2]}
    sizes |= {"channels": task.train.values.shape[1], "classes": len(task.train.classes)}
    seconds = {"train_seconds": round(done.seconds), "measure_seconds": round(time.perf_counter() - started)}
    return {**sizes, **seconds, **found}


def choose_loss(task: Task, condition: str) -> xl.EGTLoss:
    """Of the plain network, which has one exit: classification."""
    loss = LOSSES[condition] or xl.EGTLoss(weight=0.0)
    return replace(loss, distill=task.distill) if condition == EGT else loss


def build_network(task: Task, condition: str, seed: int) -> xl.ExitNet:
    """Untrained; the plain network has its own classifier and no early exits."""
    torch.manual_seed(seed)
    channels, classes = task.train.values.shape[1], len(task.train.classes)
    backbone, example = ResNet1d(channels, classes, WIDTHS), task.train.first(1).inputs
    if condition == PLAIN:
        net = xl.attach(backbone, [], classes, example, final="keep")
    else:
        net = xl.attach(backbone, AT, classes, example, head="context")
    net.describe(classes=task.train.classes, preprocess=task.train.preprocess)
    return net


def measure(net: xl.ExitNet, task: Task) -> dict[str, Any]:
    """Accuracy of every exit on every test set; thresholds chosen on validation data; maps on the first test set."""
    found: dict[str, Any] = {"cost": net.cost.tolist(), "head_share": net.head_share, "tests": {}}
    traces = {name: xl.collect(net, data, batch_size=250) for name, data in task.tests.items()}
    never = xl.Policy.never(net.num_exits)
    for name, trace in traces.items():
        report = xl.evaluate(trace, never)
        found["tests"][name] = {"samples": len(trace), "accuracy": [row.accuracy for row in report.exits]}
        if net.num_exits > 1:
            found["tests"][name]["skill"] = [row.consistency["cc"]["skill"] for row in report.exits[:-1]]
    if net.num_exits == 1:
        return found
    policy = xl.calibrate(xl.collect(net, task.validation, batch_size=250), max_accuracy_drop=MOST_LOST)
    report = xl.evaluate(next(iter(traces.values())), policy)
    thresholds = [None if one == math.inf else one for one in policy.thresholds]
    found["routed"] = {"thresholds": thresholds, "cost": report.cost, "accuracy": report.accuracy}
    found["routed"]["accuracy_drop"], found["routed"]["shares"] = report.accuracy_drop, report.exit_shares
    test = next(iter(task.tests.values()))
    judged = xl.faithfulness(net, test, samples=500, oracle_samples=200).to_dict()
    found["maps"] = {name: judged[name] for name in KEPT}
    return found
