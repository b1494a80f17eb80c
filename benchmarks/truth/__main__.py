"""Trains and judges networks on seven tasks: do maps agree, are they true, and what do answers pay for it? results/truth.csv.

Usage: python -m benchmarks.truth [PATTERN ...]

Runs are named TASK/CONDITION-SEED (``pictures/egt-0``); patterns choose some. What is there already is skipped, and a run that was
stopped goes on from its last epoch. Two go side by side, a core each. Pictures need ``openclipart-png``, fashion
``dataset-fashion-mnist``, pictures, transformers and reviews the extra
``benchmark``; they are made on first use. All of it takes hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.side_by_side import is_chosen, make_runs
from benchmarks.truth.jobs import do, list_runs, start_worker
from benchmarks.truth.runs import TRUTH


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    patterns = parser.parse_args(arguments).patterns
    named = {"{}/{}-{}".format(*one): one for one in list_runs()}
    todo = {name: one for name, one in named.items() if name not in TRUTH and is_chosen(name, patterns)}
    failed = make_runs(todo, do, start_worker)
    TRUTH.fold()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
