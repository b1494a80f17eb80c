"""Times the engine against everything a user would pick instead, for networks in one and in two threads.

Usage: python -m benchmarks.performance [--only NETWORK-THREADS ...] [--again] [--quick]

Every part runs in a process of its own, pinned to as many processors as it has threads; what is there already is skipped
(``--again`` measures it again). Nothing else should run meanwhile. What was measured goes to benchmarks/results/performance.csv and
from there, by benchmarks.performance.page, to docs/measured/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings

from benchmarks.performance.measure import measure_network
from benchmarks.performance.networks import NETWORKS
from benchmarks.performance.runs import PERFORMANCE
from benchmarks.performance.streams import measure_memory
from exitlens.delivery.bench.timing import pin_threads

MEMORY = "memory-small-2"


def measure_part(name: str, quick: bool) -> None:
    """Measures one part in this process."""
    started = time.perf_counter()
    warnings.filterwarnings("ignore", module="earlyon")
    network, threads = name.removeprefix("memory-").rsplit("-", 1)
    with pin_threads(int(threads)):
        if name == MEMORY:
            PERFORMANCE.add(name, measure_memory(network))
            return
        found = measure_network(NETWORKS[network], int(threads), quick)
    found["seconds"] = round(time.perf_counter() - started)
    if quick:
        print(json.dumps(found)[:400])
    else:
        PERFORMANCE.add(name, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="such as resnet50-2")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few rounds, small batches, nothing is written")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        measure_part(given.part, given.quick)
        return
    everything = [f"{name}-{threads}" for threads in (2, 1) for name in NETWORKS] + ([] if given.quick else [MEMORY])
    for name in given.only or everything:
        if name in PERFORMANCE and not (given.again or given.quick):
            print(f"{name}: there already")
            continue
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", "benchmarks.performance", "--part", name, *(["--quick"] if given.quick else [])]
        subprocess.run(command, check=True)
    PERFORMANCE.fold()


if __name__ == "__main__":
    main()
