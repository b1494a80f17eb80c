"""Makes the runs of the study: does aligning explanations help, and is it honest?

Usage: python -m benchmarks.study [PATTERN ...] [--quick] [--csv FILE] [--runs DIR]

Runs are named DATA/CONDITION-SEED (``scenes/egt-0``) and, first, sweep/LOSS-ALPHA; what is there already is skipped, and a run
that was stopped goes on from its last epoch. Patterns (``'scenes/*-0'``) choose runs. Two runs go side by side, one core each.
What a run found waits under runs/study and is folded into benchmarks/results/study.csv at the end, or by ``make tables``, which
makes docs/measured/results.md of it. ``--quick`` goes through everything on 96 images for one epoch, one seed, into runs/study-quick.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.study.jobs import fits, list_jobs, list_sweeps, run_all, time_networks
from benchmarks.study.runs import QUICK, STUDY, study_store
from exitlens.model.process import keep_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--runs", type=Path)
    args = parser.parse_args()
    usual = QUICK if args.quick else STUDY
    store = study_store(args.csv or usual.path, args.runs or usual.runs)
    workers = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    try:
        for jobs in (list_sweeps(args.quick), list_jobs(args.quick)):
            todo = [job for job in jobs if job.name not in store and fits(job.name, args.patterns)]
            if todo:
                run_all(todo, store, args.quick, workers)
        keep_memory()
        time_networks(store, args.quick, args.patterns)
    finally:
        store.fold()


if __name__ == "__main__":
    main()
