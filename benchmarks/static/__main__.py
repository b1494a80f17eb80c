"""Trains static networks, distilled from the full one, beside our adaptive one; results/static.csv.

Usage: python -m benchmarks.static [PATTERN ...]                (hours, two side by side, a core each; resumable)
       python -m benchmarks.static time [--again] [PATTERN ...] (minutes, nothing else running; needs our trained networks)

Runs are named TASK/adaptive-SEED, TASK/CANDIDATE-SEED (``scenes/width-50-0``) and TASK/time-SEED; patterns choose some. What is there
already is skipped, and what was stopped goes on from its last epoch. The full network and ours are those of ``benchmarks.truth``,
trained here where they are missing. ``--quick`` does all of it on 96 samples for one epoch, in a folder of its own. Pictures need
``openclipart-png`` and the extra ``benchmark``, fashion needs ``dataset-fashion-mnist``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.side_by_side import is_chosen, make_runs
from benchmarks.static.jobs import do, list_runs
from benchmarks.static.runs import QUICK, WHOLE
from benchmarks.truth.jobs import start_worker


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--again", action="store_true", help="make runs that are there already, too")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    timed, place = given.patterns[:1] == ["time"], QUICK if given.quick else WHOLE
    patterns = given.patterns[1:] if timed else given.patterns
    named = {"{}/{}-{}".format(*one): one for one in list_runs(timed)}
    todo = {
        name: one for name, one in named.items() if is_chosen(name, patterns) and (given.again or name not in place.store)
    }
    failed = make_runs({name: (*one, place) for name, one in todo.items()}, do, start_worker, 1 if timed else 2)
    place.store.fold()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
