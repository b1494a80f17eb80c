"""The study: does aligning explanations help, and is it honest? One JSON per run under benchmarks/results/study.

Usage: python benchmarks/study.py [PATTERN ...] [--quick] [--out DIR] [--runs DIR]

Runs are named DATA/CONDITION-SEED (``scenes/egt-0``) and, first, sweep/LOSS-ALPHA; what is there already is skipped, and a run
that was stopped goes on from its last epoch. Patterns (``'scenes/*-0'``) choose runs. Two runs go side by side, one core each.
``--quick`` goes through everything on 96 images for one epoch, one seed, into runs/study-quick.
docs/results.md is made from the JSON by benchmarks/study_page.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import study_run
import study_speed
from exitlens.io import write_text
from exitlens.model.engine.malloc import keep_memory
from study_conditions import CONDITIONS, FOR, SEEDS, SWEPT, Condition, chosen, weighted, weights
from study_data import DATA, Splits
from study_data import quick as quick_splits

RESULTS, RUNS = Path(__file__).parent / "results" / "study", Path("runs/study")
SWEEP_SEED, SWEEP_TRAIN, QUICK = 1000, 6000, 96


@dataclass(frozen=True)
class Job:
    """One run: ``data/condition-seed``, or ``sweep/loss-alpha``."""

    data: str
    key: str
    seed: int
    alpha: float | None = None

    @property
    def name(self) -> str:
        return f"sweep/{self.key}-{self.alpha:g}" if self.alpha is not None else f"{self.data}/{self.key}-{self.seed}"


def sweeps(quick: bool) -> Iterator[Job]:
    """Weights of every loss, on scenes of a seed of their own, half of the training set."""
    for loss in SWEPT:
        for alpha in weights(loss, quick):
            yield Job("scenes", loss, SWEEP_SEED, alpha)


def jobs(quick: bool) -> Iterator[Job]:
    """Seed by seed, so that what is there after any time is complete for some seeds."""
    for seed in range(1 if quick else max(SEEDS.values())):
        for data in DATA:
            if seed < SEEDS[data]:
                for key in FOR[data]:
                    yield Job(data, key, seed)


def do(job: Job, out: Path, runs: Path, quick: bool) -> str:
    """Runs one job and writes its JSON."""
    path = out / f"{job.name}.json"
    if path.exists():
        return f"{job.name}: there already"
    started = time.perf_counter()
    torch.set_num_threads(1)
    splits = quick_splits(job.data, job.seed, QUICK) if quick else DATA[job.data](job.seed)
    folder = runs / job.name
    if job.alpha is not None:
        half = replace(splits, train=splits.train.first(SWEEP_TRAIN))
        condition = Condition("", f"{job.key}, weight {job.alpha:g}", loss=weighted(job.key, job.alpha))
        found: dict[str, Any] = {"alpha": job.alpha, **study_run.validated(condition, half, job.seed, folder)}
    else:
        condition = CONDITIONS[job.key]
        if condition.swept:
            condition = replace(
                condition, loss=weighted(condition.swept, chosen(out, condition.swept, weights(condition.swept, quick)))
            )
        plain = _plain(job, splits, runs) if condition.frozen else None
        found = study_run.run(condition, splits, job.seed, folder, plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
    return f"{job.name}: {time.perf_counter() - started:.0f} s"


def speeds(out: Path, runs: Path, quick: bool, patterns: Sequence[str]) -> None:
    """Timed last, one after the other, with nothing else running; for seeds whose networks are on this machine."""
    for data in ("scenes", "fashion"):
        for seed in range(1 if quick else SEEDS[data]):
            name = f"speed/{data}-{seed}"
            wanted = not patterns or any(fnmatch(name, pattern) for pattern in patterns)
            path = out / f"{name}.json"
            keys = ("plain", study_speed.METHOD)
            there = all((runs / data / f"{key}-{seed}" / "bundle" / "manifest.json").exists() for key in keys)
            if not wanted or path.exists() or not there:
                continue
            splits = quick_splits(data, seed, QUICK) if quick else DATA[data](seed)
            found = study_speed.measure(data, seed, splits, out, runs, rounds=1 if quick else study_speed.ROUNDS)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found, indent=1) + "\n")
            times = ", ".join(f"{row['speed']['speedup']:.2f} times faster ({row['policy']})" for row in found["rows"])
            print(f"{name}: {times}", flush=True)


def _plain(job: Job, splits: Splits, runs: Path) -> Path:
    """The bundle of the plain backbone of this seed; trained here if it is not there (another machine made its JSON)."""
    folder = runs / job.data / f"plain-{job.seed}"
    if not (folder / "bundle" / "manifest.json").exists():
        folder = runs / job.data / f"plain-for-frozen-{job.seed}"
        study_run.trained(CONDITIONS["plain"], splits, job.seed, folder)
    return folder / "bundle"


def _start_worker() -> None:
    torch.set_num_threads(1)
    keep_memory()


def run_all(todo: list[Job], out: Path, runs: Path, quick: bool, workers: int) -> None:
    """In ``workers`` processes; what fails is named and does not stop the others, but the end."""
    failed = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        pending = [(job, pool.submit(do, job, out, runs, quick)) for job in todo]
        for i, (job, result) in enumerate(pending, 1):
            try:
                print(f"[{i}/{len(pending)}] {result.result()}", flush=True)
            except Exception as error:
                failed.append(job.name)
                print(f"[{i}/{len(pending)}] {job.name} failed: {type(error).__name__}: {error}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path)
    args = parser.parse_args()
    out = args.out or (RUNS.with_name("study-quick") / "results" if args.quick else RESULTS)
    runs = args.runs or (RUNS.with_name("study-quick") if args.quick else RUNS)
    workers = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    for part in (sweeps(args.quick), jobs(args.quick)):
        todo = [job for job in part if not (out / f"{job.name}.json").exists()]
        todo = [job for job in todo if not args.patterns or any(fnmatch(job.name, pattern) for pattern in args.patterns)]
        if todo:
            run_all(todo, out, runs, args.quick, workers)
    keep_memory()
    speeds(out, runs, args.quick, args.patterns)


if __name__ == "__main__":
    main()
