"""The runs, and what a process of the pool does (which has to be importable there)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.truth.conditions import LOSSES
from benchmarks.truth.measure import run
from benchmarks.truth.runs import TRUTH
from benchmarks.truth.tasks import SEEDS, TASKS, count_seeds
from exitlens.model.process import keep_memory


def list_runs() -> Iterator[tuple[str, str, int]]:
    """Seed by seed, so that what is there after any time is complete for some seeds."""
    for seed in range(max(SEEDS.values())):
        for task in SEEDS:
            yield from ((task, condition, seed) for condition in LOSSES if seed < count_seeds(task, condition))


def do(task: str, condition: str, seed: int) -> str:
    """Makes one run and keeps what it found."""
    name, started = f"{task}/{condition}-{seed}", time.perf_counter()
    TRUTH.add(name, run(TASKS[task](seed), condition, seed, TRUTH.runs / name))
    return f"{name}: {time.perf_counter() - started:.0f} s"


def start_worker() -> None:
    """One thread for each of two processes is faster than two threads in turn."""
    torch.set_num_threads(1)
    keep_memory()
