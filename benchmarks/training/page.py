"""Writes the table of docs/guides/training.md from benchmarks/results/training.csv: python -m benchmarks.training.page."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import fill, table
from benchmarks.training.runs import STEP, TRAINING

HEAD = [
    "network",
    "images",
    "every epoch, s",
    "once, s",
    "an epoch on kept features, s",
    "times as quick",
    "linear probe, s",
    "kB an image",
]
STEPS = ["task", "batch", "EGT every so many steps", "without, s", "with EGT, s", "times"]


def list_rows(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for every network."""
    rows = []
    for name, found in runs.items():
        if name.startswith(STEP):
            continue
        seconds, (middle, low, high) = found["seconds"], found["speedup"]
        cells = [
            f"{found['samples']} of {found['pixels']} px",
            f"{seconds['every epoch'][0]:.2f}",
            f"{found['seconds_once']:.2f}",
        ]
        cells += [f"{seconds['kept'][0]:.3f}", f"{middle:.1f} ({low:.1f} to {high:.1f})", f"{seconds['probe'][0]:.3f}"]
        rows.append([name.replace("-evidence", ", evidence heads"), *cells, f"{found['kb_a_sample']:.0f}"])
    return rows


def list_steps(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for every task whose steps were timed."""
    rows = []
    for name, found in runs.items():
        if name.startswith(STEP):
            middle, low, high = found["ratio"]
            cells = [f"{found['seconds'][one][0]:.3f}" for one in ("without", "egt")]
            task = name.removeprefix(STEP)
            rows.append(
                [task, str(found["batch_size"]), str(found["every"]), *cells, f"{middle:.2f} ({low:.2f} to {high:.2f})"]
            )
    return rows


def main() -> None:
    runs = TRAINING.read()
    fill("frozen", table(HEAD, list_rows(runs)))
    fill("steps", table(STEPS, list_steps(runs)))


if __name__ == "__main__":
    main()
