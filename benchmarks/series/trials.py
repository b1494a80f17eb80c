"""Chooses how long to train on the archives' sets, and whether to distil, on validation series alone: docs/measured/series.md.

Usage: python -m benchmarks.series.trials [--seeds 10 11 12 13 14] [--out FILE]

Prints a row for every run and writes it to benchmarks/results/series_trials.csv, as runs end; what is there is skipped. Seeds are others
than those that are reported. ``lost`` is in points: thresholds chosen on a half of the validation series, lost on the other half, mean of
20 halvings. An hour on one core.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch

import exitlens as xl
from benchmarks.series.measure import EGT, MOST_LOST, build_network, choose_loss
from benchmarks.series.tasks import load_task
from benchmarks.store import RESULTS

TRIALS = (
    *(("gunpoint", updates, distill) for updates, distill in ((320, 0.0), (1280, 0.0), (1280, 1.0), (2560, 1.0))),
    *(("vowels", updates, distill) for updates, distill in ((320, 0.0), (1280, 0.0), (1280, 1.0))),
)
HEAD = ("task", "updates", "distill", "seed", "exit_0", "lost", "cost")
HALVINGS = 20


def run(name: str, updates: int, distill: float, seed: int) -> tuple[float, float, float]:
    """Accuracy of exit 0 and points lost, both in percent, and the cost of the routed answers."""
    task = load_task(name, seed, updates, distill)
    net = build_network(task, EGT, seed)
    how = {"epochs": task.epochs, "batch_size": task.batch_size, "seed": seed, "amp": False, "progress": False}
    xl.fit(net, task.train, task.validation, loss=choose_loss(task, EGT), **how)
    trace = xl.collect(net, task.validation, batch_size=250)
    exit_0 = trace.correct[:, 0].float().mean().item()
    rng, lost, cost = torch.Generator().manual_seed(0), 0.0, 0.0
    for _ in range(HALVINGS):
        order = torch.randperm(len(trace), generator=rng)
        half = len(trace) // 2
        policy = xl.calibrate(trace.select(order[:half]), max_accuracy_drop=MOST_LOST)
        report = xl.evaluate(trace.select(order[half:]), policy)
        lost, cost = lost + report.accuracy_drop / HALVINGS, cost + report.cost / HALVINGS
    return round(100 * exit_0, 1), round(100 * lost, 2), round(cost, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--out", type=Path, default=RESULTS / "series_trials.csv")
    given = parser.parse_args(arguments)
    known = set()
    if given.out.exists():
        with given.out.open() as file:
            known = {tuple(row[:4]) for row in csv.reader(file)}
    with given.out.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not known:
            writer.writerow(HEAD)
        for trial in TRIALS:
            for seed in given.seeds:
                if (*map(str, trial), str(seed)) not in known:
                    row = (*trial, seed, *run(*trial, seed))
                    writer.writerow(row)
                    file.flush()
                    print(*row)


if __name__ == "__main__":
    main()
