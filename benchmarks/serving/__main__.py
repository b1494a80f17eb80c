"""Measures what serving promises: benchmarks/results/serving.csv.

Usage: python -m benchmarks.serving [--only RUN ...] [--again]

Runs: throughput-NETWORK[-SIZE], overhead, leavers-NETWORK, answers, faults-KIND, overload-NETWORK, hostile, designs, simulated-NETWORK.
Those that are there are left out. Needs `make demo-full`; about an hour, nothing else running.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.serving.answers import compare_answers
from benchmarks.serving.designs import compare_designs, simulate_designs
from benchmarks.serving.faults import kill_replica, kill_worker, reload_under_load, terminate_under_load
from benchmarks.serving.hostile import send_hostile
from benchmarks.serving.networks import NETWORKS
from benchmarks.serving.overload import measure_overload
from benchmarks.serving.runs import SERVING
from benchmarks.serving.speed import measure_leavers, measure_overhead, measure_throughput

FAULTS = {
    "kill_worker": kill_worker,
    "kill_replica": kill_replica,
    "reload": reload_under_load,
    "terminate": terminate_under_load,
}


def find_rate(name: str) -> float:
    """Requests a second that our server bears, from the run before."""
    rate: float = SERVING.read()[f"throughput-{name}"]["exits"]["samples_a_second"]
    return rate


def list_runs() -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to measure, by name."""
    return {
        **{f"throughput-{name}": partial(measure_throughput, name) for name in NETWORKS},
        "throughput-small-16": partial(measure_throughput, "small", 16),
        "overhead": measure_overhead,
        **{f"leavers-{name}": lambda name=name: measure_leavers(name, find_rate(name)) for name in NETWORKS},
        "answers": compare_answers,
        **{f"faults-{name}": call for name, call in FAULTS.items()},
        **{f"overload-{name}": lambda name=name: measure_overload(name, find_rate(name)) for name in NETWORKS},
        "hostile": send_hostile,
        "designs": compare_designs,
        **{f"simulated-{name}": partial(simulate_designs, name) for name in NETWORKS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="RUN")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    runs = list_runs()
    for name in given.only or runs:
        if name in SERVING and not given.again:
            continue
        started = time.perf_counter()
        SERVING.add(name, runs[name]())
        SERVING.fold()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
