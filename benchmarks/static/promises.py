"""The promises of docs/static.md: ours minus the static network of equal time, means over seeds, paired by seed."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.promises import Promise
from benchmarks.static.candidates import RIVALS
from benchmarks.static.compare import Runs, find_whole_seeds, list_differences
from benchmarks.static.tasks import SEEDS
from benchmarks.study.report.figures import interval

AGREE, DISAGREE = 0.5, 5.0  # points
BARS = {"scenes": {"agreeing": AGREE, "disagreeing": DISAGREE}, "pictures": {"test": AGREE}}


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Those of the tasks of which all runs are there."""
    for task, bars in BARS.items():
        seeds = find_whole_seeds(runs, task)
        if len(seeds) < SEEDS[task]:
            continue
        for test, bar in bars.items():
            values = list_differences(runs, task, seeds, RIVALS[task], test)
            if values:
                middle, half = interval(values)
                what = f"{task}, {test}: accuracy over the static network of equal time, points"
                yield Promise(f"static|{task}|{test}", what, middle, ">=", bar, half)
