"""Fine-tunes an ImageNet network on pictures of drawings, plain and with exits, with three seeds; results/pictures.csv.

Usage: python -m benchmarks.pictures [--only RUN ...] [--again] [--data runs/pictures/data]

Runs: plain-SEED, exits-SEED, pair-SEED (the two of a seed on the same pictures), step-0 (processor time of a training step). What is there already is skipped; what was stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pictures.measure import compare, measure_network
from benchmarks.pictures.runs import PICTURES, SEEDS
from benchmarks.pictures.steps import time_steps
from benchmarks.pictures.train import KINDS, open_folder

RUNS = Path("runs/pictures")
TRAINED = Path("runs/truth/pictures"), {"plain": "plain", "exits": "egt"}  # the same networks, by their names there
NAMES = ["step-0", *(f"{kind}-{seed}" for seed in SEEDS for kind in (*KINDS, "pair"))]


def measure(name: str, data: Path) -> dict[str, Any]:
    kind, _, seed = name.rpartition("-")
    if kind == "step":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return time_steps()
        finally:
            torch.set_num_threads(threads)
    if kind == "pair":
        return compare(int(seed), RUNS)
    folder, names = TRAINED
    return measure_network(kind, int(seed), open_folder(data), RUNS, folder / f"{names[kind]}-{seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, metavar="RUN")
    parser.add_argument("--again", action="store_true", help="measure what is there, too; finished training stays")
    parser.add_argument("--data", type=Path, default=RUNS / "data", metavar="DIR", help="made on first use (a minute)")
    given = parser.parse_args()
    for name in given.only or NAMES:
        if name in PICTURES and not given.again:
            print(f"{name}: there already")
            continue
        started = time.perf_counter()
        PICTURES.add(name, measure(name, given.data))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    PICTURES.fold()


if __name__ == "__main__":
    main()
