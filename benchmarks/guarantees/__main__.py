"""Checks every promise of docs/concepts/guarantees.md; what was found goes to benchmarks/results/guarantees.csv.

Usage: python -m benchmarks.guarantees [--only PART ...] [--again] [--quick]

Parts: splits-NAME (1,000 calibration/test splits of a real trace), synthetic (2,000 draws with known risk), labels (1,000 draws of samples with several labels), groups (1,000 draws
of correlated groups), watch-groups (the drift watch on such), families (the warning without groups), saving-NAME (against hindsight, RC-EENN's single threshold and
CRC), gate-NAME, drift, time. What is there already is skipped. The networks
are the demo's (runs/demo-full) and one on garments without backgrounds, trained here on first use (runs/guarantees, some minutes).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.guarantees.drift import measure_drift
from benchmarks.guarantees.duration import time_calibration
from benchmarks.guarantees.families import measure_families
from benchmarks.guarantees.gate import measure_gate
from benchmarks.guarantees.groups import count_on_groups, watch_on_groups
from benchmarks.guarantees.savings import measure_savings
from benchmarks.guarantees.traces import TRACES
from benchmarks.guarantees.violations import count_on_labels, count_on_splits, count_on_synthetic
from benchmarks.store import GUARANTEES

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "time": time_calibration,
    **{f"saving-{name}": partial(measure_savings, name) for name in TRACES},
    "drift": measure_drift,
    **{f"splits-{name}": partial(count_on_splits, name) for name in TRACES},
    "synthetic": count_on_synthetic,
    "labels": count_on_labels,
    "groups": count_on_groups,
    "watch-groups": watch_on_groups,
    "families": measure_families,
    **{f"gate-{name}": partial(measure_gate, name) for name in TRACES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few draws, nothing is written")
    given = parser.parse_args()
    for name in given.only or PARTS:
        if name in GUARANTEES and not (given.again or given.quick):
            print(f"{name}: there already")
            continue
        started = time.perf_counter()
        with torch.inference_mode(False):
            found = PARTS[name](given.quick)
        found["seconds_taken"] = round(time.perf_counter() - started)
        print(f"{name}: {found['seconds_taken']} s", flush=True)
        if given.quick:
            print(json.dumps(found)[:600])
        else:
            GUARANTEES.add(name, found)
    GUARANTEES.fold()


if __name__ == "__main__":
    main()
