"""Training by two processes on this machine; what was found goes to benchmarks/results/processes.csv.

Usage: python -m benchmarks.processes [--only PART ...] [--again] [--quick]

Parts: seconds-NET (an epoch of two processes of one thread against one process of two, in turn), weights (how far they are
apart), kill-RANK and hang-RANK (a process is killed, or stopped). What is there already is skipped. Linux, two cores, nothing
else running; about five minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.processes.measure import measure_hang, measure_kill, measure_seconds, measure_weights
from benchmarks.store import PROCESSES

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "seconds-small": partial(measure_seconds, "small"),
    "seconds-resnet18": partial(measure_seconds, "resnet18"),
    "seconds-resnet18-96": partial(measure_seconds, "resnet18-96"),
    "weights": measure_weights,
    "kill-0": partial(measure_kill, 0),
    "kill-1": partial(measure_kill, 1),
    "hang-0": partial(measure_hang, 0),
    "hang-1": partial(measure_hang, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few images, nothing is written")
    given = parser.parse_args()
    for name in given.only or PARTS:
        if name in PROCESSES and not (given.again or given.quick):
            print(f"{name}: there already")
            continue
        started = time.perf_counter()
        found = PARTS[name](given.quick)
        found["seconds_taken"] = round(time.perf_counter() - started)
        print(f"{name}: {json.dumps(found)}", flush=True)
        if not given.quick:
            PROCESSES.add(name, found)
            PROCESSES.fold()


if __name__ == "__main__":
    main()
