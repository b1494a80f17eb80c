"""Trains and judges small networks of series: benchmarks/results/series.csv.

Usage: python -m benchmarks.series [PATTERN ...] [--processes N]

Runs are named TASK/CONDITION-SEED (``gunpoint/egt-0``); patterns choose some. What is there already is skipped, and a run that
was stopped goes on from its last epoch. The data sets come with ``aeon`` (extra ``benchmark``). Half an hour on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.series.measure import EGT, PLAIN, WITHOUT, run
from benchmarks.series.runs import SERIES
from benchmarks.series.tasks import ARCHIVE, MOTIFS, load_task
from benchmarks.side_by_side import is_chosen, make_runs

SEEDS = 5


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs side by side (2)")
    given = parser.parse_args(arguments)
    named = {"{}/{}-{}".format(*one): one for one in list_runs()}
    todo = {name: one for name, one in named.items() if name not in SERIES and is_chosen(name, given.patterns)}
    failed = make_runs(todo, do, start_worker, given.processes)
    SERIES.fold()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
