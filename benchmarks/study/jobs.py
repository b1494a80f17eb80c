"""The runs of the study, made one after the other or side by side."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks.store import Store
from benchmarks.study import speed as study_speed
from benchmarks.study.conditions import (
    CONDITIONS,
    FOR,
    SEEDS,
    SWEPT,
    TIMED,
    Condition,
    choose_weight,
    list_weights,
    weigh,
)
from benchmarks.study.data import DATA, Splits, cut_splits
from benchmarks.study.measure import run, validate
from benchmarks.study.runs import TUNING_SEED, study_store
from benchmarks.study.train import train
from exitlens.model.process import keep_memory

SWEEP_TRAIN, QUICK = 6000, 96


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


def list_sweeps(quick: bool) -> Iterator[Job]:
    """Weights of every loss, on scenes of a seed of their own, half of the training set."""
    for loss in SWEPT:
        for alpha in list_weights(loss, quick):
            yield Job("scenes", loss, TUNING_SEED, alpha)


def list_jobs(quick: bool) -> Iterator[Job]:
    """Seed by seed, so that what is there after any time is complete for some seeds."""
    for seed in range(1 if quick else max(SEEDS.values())):
        for data in DATA:
            if seed < SEEDS[data]:
                for key in FOR[data]:
                    yield Job(data, key, seed)


def make_splits(data: str, seed: int, quick: bool) -> Splits:
    return cut_splits(data, seed, QUICK) if quick else DATA[data](seed)


def do(job: Job, store: Store, quick: bool) -> str:
    """Makes one run and keeps what it found."""
    if job.name in store:
        return f"{job.name}: there already"
    started = time.perf_counter()
    torch.set_num_threads(1)
    splits, folder = make_splits(job.data, job.seed, quick), store.runs / job.name
    if job.alpha is not None:
        half = replace(splits, train=splits.train.first(SWEEP_TRAIN))
        condition = Condition("", f"{job.key}, weight {job.alpha:g}", loss=weigh(job.key, job.alpha))
        found: dict[str, Any] = {"alpha": job.alpha, **validate(condition, half, job.seed, folder)}
    else:
        condition = CONDITIONS[job.key]
        if condition.swept:
            weight = choose_weight(store, condition.swept, list_weights(condition.swept, quick))
            condition = replace(condition, loss=weigh(condition.swept, weight))
        plain = _find_plain(job, splits, store.runs) if condition.frozen else None
        found = run(condition, splits, job.seed, folder, plain)
    store.add(job.name, found)
    return f"{job.name}: {time.perf_counter() - started:.0f} s"


def time_networks(store: Store, quick: bool, patterns: Sequence[str]) -> None:
    """Timed last, one after the other, with nothing else running; for seeds whose networks are on this machine."""
    for data in TIMED:
        for seed in range(1 if quick else SEEDS[data]):
            name = f"speed/{data}-{seed}"
            folders = [store.runs / data / f"{key}-{seed}" for key in ("plain", study_speed.METHOD)]
            there = all((folder / "bundle" / "manifest.json").exists() for folder in folders)
            if not fits(name, patterns) or name in store or not there:
                continue
            rounds = 1 if quick else study_speed.ROUNDS
            found = study_speed.measure(data, seed, make_splits(data, seed, quick), store, rounds)
            store.add(name, found)
            rows = found["rows"].items()
            times = ", ".join(f"{row['speed']['speedup']:.2f} times faster ({policy})" for policy, row in rows)
            print(f"{name}: {times}", flush=True)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a run was asked for; without patterns all are."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _find_plain(job: Job, splits: Splits, runs: Path) -> Path:
    """The bundle of the plain backbone of this seed; trained here if it is not there (another machine made its JSON)."""
    folder = runs / job.data / f"plain-{job.seed}"
    if not (folder / "bundle" / "manifest.json").exists():
        folder = runs / job.data / f"plain-for-frozen-{job.seed}"
        train(CONDITIONS["plain"], splits, job.seed, folder)
    return folder / "bundle"


def _start_worker() -> None:
    torch.set_num_threads(1)
    keep_memory()


def run_all(todo: list[Job], store: Store, quick: bool, workers: int) -> None:
    """In ``workers`` processes; what fails is named and does not stop the others, but the end."""
    failed = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        pending = [(job, pool.submit(_do, job, store.path, store.runs, quick)) for job in todo]
        for i, (job, result) in enumerate(pending, 1):
            try:
                print(f"[{i}/{len(pending)}] {result.result()}", flush=True)
            except Exception as error:
                failed.append(job.name)
                print(f"[{i}/{len(pending)}] {job.name} failed: {type(error).__name__}: {error}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _do(job: Job, path: Path, runs: Path, quick: bool) -> str:
    return do(job, study_store(path, runs), quick)
