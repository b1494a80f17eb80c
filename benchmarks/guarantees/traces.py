"""Populations of samples: traces of trained networks, and synthetic ones whose risks are known.

The networks are the demo's (runs/demo-full) and one on garments without backgrounds, trained here on first use (some minutes).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from exitlens.data.demo.garments import CLASSES, load_garments
from exitlens.delivery.demo import EGT, WITHOUT

RUNS = Path("runs/guarantees")
TRACES = ("scenes-egt", "scenes-baseline", "garments-egt")
CALIBRATION = 2000  # samples that choose a policy
_TRACES: dict[str, xl.Trace] = {}


def load_trace(name: str) -> xl.Trace:
    """A population of samples that the network was neither trained nor chosen on."""
    path = RUNS / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data, kind = name.split("-")
        net = load_scene_net(kind) if data == "scenes" else train_garment_net(kind)
        samples = make_scenes(0.8) if data == "scenes" else make_garments()
        torch.save(vars(xl.collect(net, samples, batch_size=256)), path)
    return xl.Trace(**torch.load(path, weights_only=False))


def collect_drifted() -> xl.Trace:
    """The demo's EGT network on scenes with other backgrounds."""
    path = RUNS / "scenes-egt-drifted.pt"
    if not path.exists():
        load_trace("scenes-egt")  # makes the folder
        torch.save(vars(xl.collect(load_scene_net("egt"), make_scenes(0.1), batch_size=256)), path)
    return xl.Trace(**torch.load(path, weights_only=False))


def load_scene_net(kind: str) -> xl.ExitNet:
    return xl.load(f"runs/demo-full/training/{kind}/bundle")[0]


def load_unseen() -> tuple[Tensor, Tensor]:
    """5,000 garments of the calibration and test splits."""
    parts = [load_garments(split) for split in ("calibration", "test")]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def make_scenes(agreement: float) -> xl.ImageSet:
    """Each of them twice, in two scenes."""
    images, labels = load_unseen()
    parts = [xl.make_scenes(images, labels, CLASSES, background_agreement=agreement, seed=seed) for seed in (91, 92)]
    return xl.ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), CLASSES)


def make_garments() -> xl.ImageSet:
    images, labels = load_unseen()
    return xl.ImageSet(images[:, None], labels, CLASSES)


def train_garment_net(kind: str) -> xl.ExitNet:
    """Our small network on the garments themselves, four epochs."""
    folder = RUNS / f"net-{kind}"
    if not (folder / "manifest.json").exists():
        torch.manual_seed(0)
        train, validation = xl.load_fashion("train"), xl.load_fashion("validation")
        plain = xl.build_backbone("small", 10, 1)
        net = xl.attach(plain, ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 1, 28, 28))
        net.describe(source="small", classes=CLASSES, preprocess=xl.Preprocess((28, 28), (0.5,), (0.25,)))
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fit gives it back as it was
        loss = EGT if kind == "egt" else WITHOUT
        xl.fit(net, train, validation, loss=loss, epochs=4, out_dir=RUNS / f"fit-{kind}", resume=True)
        xl.save(net, None, folder)
    return xl.load(folder)[0]


def recall_trace(name: str) -> xl.Trace:
    if name not in _TRACES:
        torch.set_num_threads(1)
        make = {"synthetic": make_population, "labels": make_label_population}.get(name.split("-")[0])
        _TRACES[name] = load_trace(name) if make is None else make(int(name.split("-")[1]))
    return _TRACES[name]


def make_population(kind: int, count: int = 20_000) -> xl.Trace:
    """Synthetic samples that stand for a distribution: draws from them, with replacement, have exactly known risks.

    Kind 0: scores that tell right from wrong, fine. Kind 1: five different scores an exit, so that one step too far
    along the path is a large step. Kind 2: early exits that are as good as the final one where they are sure.
    """
    rng = torch.Generator().manual_seed(100 + kind)
    sure = torch.rand(count, 3, generator=rng)
    sure[:, 2] = 1
    if kind == 1:
        sure[:, :2] = (sure[:, :2] * 5).floor() / 5 + 0.1
    final_wrong = torch.rand(count, generator=rng) < 0.1
    rate = (1 - sure) * (0.3 if kind == 2 else 0.5)
    labels = torch.zeros(count, dtype=torch.long)
    wrong = torch.where(
        torch.rand(count, 3, generator=rng) < rate, torch.rand(count, 3, generator=rng) < 0.6, final_wrong[:, None]
    )
    wrong[:, 2] = final_wrong
    logits = torch.zeros(count, 3, 4)
    logits.scatter_(2, wrong.long()[..., None], (2 + 6 * sure)[..., None])
    divergence = (torch.rand(count, 3, generator=rng) * (1 - sure) * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)
    return xl.Trace(logits, labels, divergence, torch.tensor([0.2, 0.5, 1.0]))


def make_label_population(kind: int, count: int = 20_000) -> xl.Trace:
    """As :func:`make_population`, of samples with any number of five labels, of which one is rare.

    Kind 0: scores that tell right from wrong, fine, and errors of all kinds. Kind 1: five different scores an exit. Kind 2:
    early exits that err by missing labels only, while the final exit misses some that they find.
    """
    rng = torch.Generator().manual_seed(200 + kind)
    labels = torch.rand(count, 5, generator=rng) < torch.tensor([0.5, 0.4, 0.3, 0.2, 0.05])
    sure = torch.rand(count, 3, generator=rng)
    sure[:, 2] = 1
    if kind == 1:
        sure[:, :2] = (sure[:, :2] * 5).floor() / 5 + 0.1
    rate = (1 - sure)[..., None] * 0.25  # of errors, for each label
    rate[:, 2] = 0.04
    err = torch.rand(count, 3, 5, generator=rng) < rate
    if kind == 2:
        err &= labels[:, None]
    told = labels[:, None] ^ err
    size = (0.3 + 5 * sure)[..., None] * (1 if kind == 1 else 0.6 + 0.8 * torch.rand(count, 3, 5, generator=rng))
    divergence = (torch.rand(count, 3, generator=rng) * (1 - sure) * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)
    return xl.Trace(torch.where(told, size, -size), labels, divergence, torch.tensor([0.2, 0.5, 1.0]))


def subset(trace: xl.Trace, rows: Tensor) -> xl.Trace:
    labels = None if trace.labels is None else trace.labels[rows]
    gate_features = None if trace.gate_features is None else trace.gate_features[rows]
    return xl.Trace(trace.logits[rows], labels, trace.divergence[rows], trace.cost, gate_features=gate_features)


def run_in_parallel(work: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(min(cores, 8)) as pool:
        return pool.map(work, seeds, chunksize=4)
