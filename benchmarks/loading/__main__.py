"""Measures how folders are read; what was found goes to benchmarks/results/loading.csv.

Usage: python -m benchmarks.loading [--only PART ...] [--again] [--quick] [--folder DIR]

Parts: first-batch, memory-fit, memory-collect, memory-evaluate (200,000 small JPEGs against 2,000), throughput (600 JPEGs like
photographs against torchvision; both cores should be quiet). What is there already is skipped. The files are made in a temporary
folder, or in --folder, where they are found again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.loading.folders import make_photographs, make_small
from benchmarks.loading.memory import run_work
from benchmarks.loading.throughput import measure_throughput
from benchmarks.store import LOADING

MANY, FEW, PHOTOGRAPHS, ROUNDS = 200_000, 2_000, 600, 7


def _find(folder: Path, make: Callable[[Path, int], Path], count: int) -> Path:
    """A folder of pictures, made once."""
    found = folder / f"{make.__name__.removeprefix('make_')}-{count}"
    if not found.exists():
        make(found.with_name(f"{found.name}.{time.time_ns()}"), count).rename(found)
    return found


def measure_first_batch(folder: Path, many: int) -> dict[str, Any]:
    runs = [run_work("first-batch", _find(folder, make_small, many))[0] for _ in range(3)]
    columns = {name: [run[name] for run in runs] for name in ("seconds", "listing_seconds")}
    return {"files": many, **{name: [statistics.median(v), min(v), max(v)] for name, v in columns.items()}}


def measure_memory(verb: str, folder: Path, many: int, few: int) -> dict[str, Any]:
    (large, large_mb), (_, small_mb) = (run_work(verb, _find(folder, make_small, n)) for n in (many, few))
    found = {"peak_mb": large_mb, "peak_mb_few": small_mb, "growth_mb": large_mb - small_mb, "seconds": large["seconds"]}
    return {"files": many, "few": few, **{name: round(value, 1) for name, value in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the files, nothing is written")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    parts = ["first-batch", "memory-fit", "memory-collect", "memory-evaluate", "throughput"]
    many, few, photographs = (MANY // 100, FEW // 10, 130) if given.quick else (MANY, FEW, PHOTOGRAPHS)
    with tempfile.TemporaryDirectory(prefix="exitlens-loading-") as temporary:
        folder = given.folder or Path(temporary)
        for name in given.only or parts:
            if name in LOADING and not (given.again or given.quick):
                print(f"{name}: there already")
                continue
            if name == "throughput":
                source = _find(folder, make_photographs, photographs)
                found = measure_throughput(source, Path(temporary) / "cache", 1 if given.quick else ROUNDS)
            elif name == "first-batch":
                found = measure_first_batch(folder, many)
            else:
                found = measure_memory(name.removeprefix("memory-"), folder, many, few)
            print(f"{name}: {json.dumps(found)}", flush=True)
            if not given.quick:
                LOADING.add(name, found)
    LOADING.fold()


if __name__ == "__main__":
    main()
