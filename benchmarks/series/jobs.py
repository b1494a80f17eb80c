"""The runs, and what a process of the pool does (which has to be importable there)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.series.measure import EGT, PLAIN, WITHOUT, run
from benchmarks.series.runs import SERIES
from benchmarks.series.tasks import ARCHIVE, MOTIFS, SEEDS, load_task


def list_runs() -> Iterator[tuple[str, str, int]]:
    """Seed by seed, so that what is there after any time is complete for some seeds."""
    for seed in range(SEEDS):
        for task in (MOTIFS, *ARCHIVE):
            yield from ((task, condition, seed) for condition in (PLAIN, EGT, *((WITHOUT,) if task == MOTIFS else ())))


def do(task: str, condition: str, seed: int) -> str:
    """Makes one run and keeps what it found."""
    name, started = f"{task}/{condition}-{seed}", time.perf_counter()
    SERIES.add(name, run(load_task(task, seed), condition, seed, SERIES.runs / name))
    return f"{name}: {time.perf_counter() - started:.0f} s"


def start_worker() -> None:
    """One thread for each process."""
    torch.set_num_threads(1)
