"""Times an epoch of heads on a frozen backbone that runs once, against one that runs in every epoch.

Usage: python -m benchmarks.training [--only NAME ...] [--again] [--quick]

What is there already is skipped (3 minutes in all). Results: benchmarks/results/training.csv.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from benchmarks.training.frozen import CASES, measure
from benchmarks.training.runs import TRAINING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CASES))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two rounds on few images; nothing is written")
    given = parser.parse_args()
    for name in given.only or CASES:
        if given.quick:
            print(name, json.dumps(measure(replace(CASES[name], samples=128, validation=64), rounds=2)))
        elif name not in TRAINING or given.again:
            found = measure(CASES[name])
            TRAINING.add(name, found)
            print(name, json.dumps(found), flush=True)
    TRAINING.fold()


if __name__ == "__main__":
    main()
