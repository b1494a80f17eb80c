"""Checks every promise of docs/measured/traces.md; what was found goes to benchmarks/results/traces.csv.

Usage: python -m benchmarks.traces [--only PART ...] [--again] [--quick]

Parts: agreement (compact logits against full ones), million (time and memory of calibrate and evaluate on a million samples;
needs 1 GB of disk), collecting (memory of collect). What is there already is skipped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.traces.agreement import measure_agreement
from benchmarks.traces.collecting import measure_collecting
from benchmarks.traces.million import measure_million
from benchmarks.traces.runs import TRACES

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "agreement": measure_agreement,
    "million": measure_million,
    "collecting": measure_collecting,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few samples, nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only or PARTS:
        if name in TRACES and not (given.again or given.quick):
            print(f"{name}: there already")
            continue
        started = time.perf_counter()
        found = PARTS[name](given.quick)
        print(f"{name}: {time.perf_counter() - started:.0f} s {json.dumps(found)}", flush=True)
        if not given.quick:
            TRACES.add(name, found)
    TRACES.fold()


if __name__ == "__main__":
    main()
