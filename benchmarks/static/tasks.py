"""Scenes and pictures of ``benchmarks.truth``, and Fashion-MNIST as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.study.data import fashion as split_fashion
from benchmarks.truth import tasks as truth
from benchmarks.truth.tasks import Task
from exitlens.model.backbones.small import SmallResNet


def fashion(seed: int) -> Task:
    """54,000 grey garments of 28 pixels to learn from, 5,000 to choose thresholds on; no background says anything."""
    splits = split_fashion(seed)
    how = {"epochs": splits.epochs, "batch_size": splits.batch_size, "channels_last": True, "amp": True}
    at = ("layer1", "layer2", "layer3")
    return Task(splits.train, splits.calibration, splits.tests, partial(SmallResNet, 10, 1), at, how)


TASKS: dict[str, Callable[[int], Task]] = {
    "scenes": truth.TASKS["scenes"],
    "pictures": truth.TASKS["pictures"],
    "fashion": fashion,
}
SEEDS = {"scenes": truth.SEEDS["scenes"], "pictures": truth.SEEDS["pictures"], "fashion": 3}
TITLES = {
    "scenes": "Scenes of 40 pixels, our small network",
    "pictures": "Pictures of drawings, 128 pixels, EfficientNet-Lite0 with ImageNet weights",
    "fashion": "Fashion-MNIST, our small network",
}


def open_task(name: str, seed: int, most: int = 0) -> Task:
    """A task; with ``most``, its first samples for one epoch: to see that all of it runs."""
    task = TASKS[name](seed)
    if not most:
        return task
    tests = {key: data.first(most) for key, data in task.tests.items()}
    sets = {"train": task.train.first(most), "validation": task.validation.first(most), "tests": tests}
    return replace(task, **sets, how={**task.how, "epochs": 1})  # type: ignore[arg-type]
