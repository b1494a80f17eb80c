"""The runs, and what a process of the pool does (which has to be importable there)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.static.candidates import CANDIDATES, list_candidates
from benchmarks.static.measure import measure_adaptive, measure_candidate
from benchmarks.static.runs import ADAPTIVE, TIME, Place
from benchmarks.static.timing import measure_times
from benchmarks.truth.tasks import SEEDS, TASKS, Task


def list_runs(timed: bool = False) -> Iterator[tuple[str, str, int]]:
    """Seed by seed, so that what is there after any time is complete for some seeds; or those that measure time."""
    for seed in range(max(SEEDS.values())):
        for task, seeds in SEEDS.items():
            if seed < seeds:
                names = (TIME,) if timed else (ADAPTIVE, *list_candidates(task, seed))
                yield from ((task, name, seed) for name in names)


def open_task(name: str, seed: int, most: int = 0) -> Task:
    """A task; with ``most``, its first samples for one epoch: to see that all of it runs."""
    task = TASKS[name](seed)
    if not most:
        return task
    tests = {key: data.first(most) for key, data in task.tests.items()}
    sets = {"train": task.train.first(most), "validation": task.validation.first(most), "tests": tests}
    return replace(task, **sets, how={**task.how, "epochs": 1})  # type: ignore[arg-type]


def do(task: str, name: str, seed: int, place: Place) -> str:
    """Makes one run and keeps what it found."""
    run, started = f"{task}/{name}-{seed}", time.perf_counter()
    opened, trained = open_task(task, seed, place.most), place.trained / task
    if name == ADAPTIVE:
        found = measure_adaptive(opened, seed, trained)
    elif name == TIME:
        found = measure_times(opened, list_candidates(task, seed), seed, trained, place.most > 0)
    else:
        found = measure_candidate(opened, CANDIDATES[task][name], seed, trained, place.store.runs / run)
    place.store.add(run, found)
    return f"{run}: {time.perf_counter() - started:.0f} s"
