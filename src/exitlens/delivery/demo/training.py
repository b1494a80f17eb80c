"""The demo's three trainings: what, on which data, and how; side by side on a core each, all resumable."""

from __future__ import annotations

import csv
import multiprocessing
import os
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from exitlens.data.fashion import load_scenes
from exitlens.data.images import ImageSet
from exitlens.data.splits import SPLITS
from exitlens.delivery.bundle import load, save
from exitlens.functional.losses import EGTLoss
from exitlens.model.attach import attach
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.malloc import keep_memory
from exitlens.model.network import ExitNet
from exitlens.workflow.training.fit import fit
from exitlens.workflow.training.record import LOG

CONDITIONS = {"agreeing": 0.8, "disagreeing": 0.1}
EGT, WITHOUT = EGTLoss().for_network(attends=False), EGTLoss(weight=0.0)
RUNS: dict[str, EGTLoss | None] = {"egt": EGT, "baseline": WITHOUT, "plain": None}


@dataclass(frozen=True)
class DemoSettings:
    """How the demo trains; ``seed`` is that of data, weights and training."""

    seed: int = 0
    epochs: int = 6
    limit: int | None = None  # garments of each split; None: all
    size: int = 40
    batch_size: int = 64
    samples: int = 3000  # test images for the faithfulness measures
    rounds: int = 7  # of each timing

    @classmethod
    def quick(cls, seed: int = 0) -> DemoSettings:
        """A run of seconds, to show the flow."""
        return cls(seed, epochs=1, limit=256, samples=64, rounds=1)


def load_data(settings: DemoSettings) -> dict[str, ImageSet]:
    """Scenes by use; the two test sets hold the same garments in the same places on different backgrounds."""
    scenes = partial(load_scenes, seed=settings.seed, size=settings.size, limit=settings.limit)
    data: dict[str, ImageSet] = {split: scenes(split, background_agreement=0.8) for split in SPLITS if split != "test"}
    return data | {name: scenes("test", background_agreement=agreement) for name, agreement in CONDITIONS.items()}


def train_all(out: Path, settings: DemoSettings, quiet: bool) -> dict[str, ExitNet]:
    """Trains whatever is not trained yet, in a single-threaded process for each core (three at most).

    With one thread the weights do not depend on the number of cores, and it is faster than two threads each.
    """
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(RUNS), cores)
    with context.Pool(workers, _start_worker) as pool:
        jobs = {name: pool.apply_async(_train_one, (name, settings, out)) for name in RUNS}
        _watch(jobs, out, settings.epochs, quiet)
        for job in jobs.values():
            job.get()
        pool.close()
        pool.join()  # so that no worker outlives this function
    return {name: load(_find_bundle(out, name))[0] for name in RUNS}


def _find_bundle(out: Path, name: str) -> Path:
    return out / "training" / name / "bundle"


def _train_one(name: str, settings: DemoSettings, out: Path) -> None:
    if _find_bundle(out, name).exists():
        return
    loss, data = RUNS[name], load_data(settings)
    net = build_network(loss, data["train"], settings.seed)
    fit(
        net,
        data["train"],
        data["validation"],
        loss=loss or EGTLoss(weight=0.0),
        epochs=settings.epochs,
        out_dir=out / "training" / name,
        batch_size=settings.batch_size,
        seed=settings.seed,
        resume=True,
        progress=False,
    )
    save(net, None, _find_bundle(out, name))


def build_network(loss: EGTLoss | None, train: ImageSet, seed: int) -> ExitNet:
    """The demo's network before training: with three early exits, or plain if there is no loss."""
    torch.manual_seed(seed)
    backbone, example = SmallResNet(num_classes=len(train.classes)), train.first(1).inputs
    at = [] if loss is None else list(backbone.groups[:-1])
    net = attach(backbone, at, len(train.classes), example, final="keep" if loss is None else "head", head="context")
    net.describe(source="small", classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _watch(jobs: dict[str, AsyncResult[None]], out: Path, epochs: int, quiet: bool) -> None:
    """Shows a progress bar for each training, read from its log, until all have ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
    with Progress(*columns, disable=quiet) as bar:
        tasks = {name: bar.add_task(f"{name:9}", total=epochs, line="starting") for name in jobs}
        while True:
            for name, task in tasks.items():
                done, line = _read_progress(out / "training" / name / LOG)
                bar.update(task, completed=done, line=line)
            if all(job.ready() for job in jobs.values()):
                return
            time.sleep(0.5)


def _read_progress(log: Path) -> tuple[int, str]:
    rows = list(csv.DictReader(log.read_text().splitlines())) if log.exists() else []
    if not rows:
        return 0, "starting"
    accuracy = [f"{100 * float(value):.1f}" for name, value in rows[-1].items() if name.startswith("accuracy_exit")]
    cc = [f"{float(value):.2f}" for name, value in rows[-1].items() if name.startswith("cc_exit")]
    agreement = f", map CC with final {' '.join(cc)}" if cc else ""
    return len(rows), f"epoch {len(rows)}: val accuracy {' '.join(accuracy)} %{agreement}"


def _start_worker() -> None:
    """Two single-threaded trainings side by side are faster than two in turn on two threads."""
    torch.set_num_threads(1)
    keep_memory()
