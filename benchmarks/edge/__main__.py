"""Measures what exported networks promise: benchmarks/results/edge.csv.

Usage: python -m benchmarks.edge [--only RUN ...] [--again] [--quick]

Runs: decisions, speed-NETWORK, points-TASK, int8-NETWORK, install, browser. Those that are there are left out. Needs `make demo-full`,
and for the browser Chromium and npm; about half an hour on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.edge.browser import measure_browser
from benchmarks.edge.decisions import compare_decisions
from benchmarks.edge.install import measure_install
from benchmarks.edge.int8 import measure_int8
from benchmarks.edge.networks import NETWORKS
from benchmarks.edge.points import FIRST, measure_points
from benchmarks.edge.rivals import RIVALS
from benchmarks.edge.runs import EDGE
from benchmarks.edge.speed import COUNTS, measure_speed

THREADS = 2


def time_network(name: str, quick: bool) -> dict[str, Any]:
    """One network at every batch size."""
    built, found = NETWORKS[name].build(), dict[str, Any]()
    for size in (1,) if quick else COUNTS:
        rivals = {key: partial(make, *built[:2]) for key, make in RIVALS.items()} if size == 1 else {}
        found[str(size)] = measure_speed(built, size, THREADS, seconds=0.0 if quick else 20.0, others=rivals)
        print(f"  {name}, batch {size}: {found[str(size)]['torch_over_runtime']}", flush=True)
    return found


def list_runs(quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to measure, by name."""
    seconds = 0.0 if quick else 15.0
    return {
        "decisions": partial(compare_decisions, 300 if quick else 10_000),
        **{f"speed-{name}": partial(time_network, name, quick) for name in NETWORKS},
        **{f"points-{task}": partial(measure_points, task, seconds) for task in FIRST},
        **{f"int8-{name}": partial(measure_int8, name, seconds) for name in ("demo", "resnet18")},
        "install": measure_install,
        "browser": measure_browser,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="RUN")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few samples and rounds; nothing is written")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    runs = list_runs(given.quick)
    for name in given.only or runs:
        if name in EDGE and not (given.again or given.quick):
            continue
        started = time.perf_counter()
        found = runs[name]()
        if given.quick:
            print(name, json.dumps(found), flush=True)
        else:
            EDGE.add(name, found)
            EDGE.fold()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
