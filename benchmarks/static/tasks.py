"""Those of the tasks of ``benchmarks.truth`` that are compared here."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.truth import tasks as truth
from benchmarks.truth.tasks import Task

SEEDS = {name: truth.SEEDS[name] for name in ("scenes", "pictures", "fashion")}
TITLES = {
    "scenes": "Scenes of 40 pixels, our small network",
    "pictures": "Pictures of drawings, 128 pixels, EfficientNet-Lite0 with ImageNet weights",
    "fashion": "Fashion-MNIST, our small network",
}


def open_task(name: str, seed: int, most: int = 0) -> Task:
    """A task; with ``most``, its first samples for one epoch: to see that all of it runs."""
    task = truth.TASKS[name](seed)
    if not most:
        return task
    tests = {key: data.first(most) for key, data in task.tests.items()}
    sets = {"train": task.train.first(most), "validation": task.validation.first(most), "tests": tests}
    return replace(task, **sets, how={**task.how, "epochs": 1})  # type: ignore[arg-type]
