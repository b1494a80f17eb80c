"""Compares relevance maps with those of captum, pytorch-grad-cam and torchcam: benchmarks/results/relevance.csv.

Usage: python -m benchmarks.relevance [--only NETWORK ...] [--again] [--quick] [--runs runs]

Networks: demo (needs `make demo-full`), lite0 (needs `make pictures`); one that is not there is left out. Some minutes in all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.relevance.measure import measure
from benchmarks.relevance.networks import NETWORKS
from benchmarks.relevance.runs import RELEVANCE

ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two rounds on few images; nothing is written")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the networks are")
    given = parser.parse_args()
    for name in given.only or NETWORKS:
        load, needed, count = NETWORKS[name]
        if not (given.runs / needed).exists():
            print(f"{name}: left out, there is no {given.runs / needed}")
        elif given.quick:
            print(name, json.dumps(measure(load(given.runs, 8), rounds=2)), flush=True)
        elif name not in RELEVANCE or given.again:
            started = time.perf_counter()
            found = measure(load(given.runs, count), ROUNDS)
            RELEVANCE.add(name, found)
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    RELEVANCE.fold()


if __name__ == "__main__":
    main()
