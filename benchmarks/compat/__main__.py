"""Tries every cell that has not been tried; what was found goes to benchmarks/results/compat.csv.

Usage: python -m benchmarks.compat [--only NAME ...] [--again] [--python PATH ...]

Cells of a Python that is not on PATH, and not given, are left out. `python -m benchmarks.compat.page` writes the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.compat.attempt import attempt
from benchmarks.compat.cells import CELLS, COMPAT
from scripts.release.environments import find_pythons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[cell.name for cell in CELLS])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter that is not on PATH")
    given = parser.parse_args()
    pythons = find_pythons(given.python)
    for cell in CELLS:
        if given.only is not None and cell.name not in given.only:
            continue
        if cell.name in COMPAT and not given.again:
            print(f"{cell.name}: there already")
        elif cell.python not in pythons:
            print(f"{cell.name}: no Python {cell.python} here (--python PATH)")
        else:
            found = attempt(cell, pythons[cell.python])
            COMPAT.add(cell.name, found)
            print(f"{cell.name}: {found}", flush=True)
    COMPAT.fold()


if __name__ == "__main__":
    main()
