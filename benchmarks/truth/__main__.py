"""Trains and judges networks on four tasks: do maps agree, are they true, and what do answers pay for it? results/truth.csv.

Usage: python -m benchmarks.truth [PATTERN ...]

Runs are named TASK/CONDITION-SEED (``pictures/egt-0``); patterns choose some. What is there already is skipped, and a run that was
stopped goes on from its last epoch. Two go side by side, a core each. Pictures and reviews need ``openclipart-png`` and the extra
``benchmark``; they are made on first use. All of it takes hours.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch

from benchmarks.truth.jobs import do, list_runs, start_worker
from benchmarks.truth.runs import TRUTH


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    patterns = parser.parse_args(arguments).patterns
    todo = [one for one in list_runs() if (name := "{}/{}-{}".format(*one)) not in TRUTH and _fits(name, patterns)]
    failed = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), start_worker) as pool:
        for i, (one, result) in enumerate([(one, pool.submit(do, *one)) for one in todo], 1):
            try:
                print(f"[{i}/{len(todo)}] {result.result()}", flush=True)
            except Exception as error:
                failed.append("{}/{}-{}".format(*one))
                print(f"[{i}/{len(todo)}] {failed[-1]} failed: {type(error).__name__}: {error}", flush=True)
    TRUTH.fold()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main()
