"""Trains and judges small networks of series: benchmarks/results/series.csv.

Usage: python -m benchmarks.series [PATTERN ...] [--processes N]

Runs are named TASK/CONDITION-SEED (``gunpoint/egt-0``); patterns choose some. What is there already is skipped, and a run that
was stopped goes on from its last epoch. The data sets come with ``aeon`` (extra ``benchmark``). An hour on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.series.jobs import do, list_runs, start_worker
from benchmarks.series.runs import SERIES
from benchmarks.side_by_side import is_chosen, make_runs


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
