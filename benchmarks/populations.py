"""Make populations of samples for the study of guarantees: traces of trained networks, and synthetic ones whose risks are known.

The networks are the demo's (runs/demo-full) and one on garments without backgrounds, trained here on first use (some minutes).
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from exitlens.data.demo import CLASSES, load_garments
from exitlens.delivery.demo import EGT, WITHOUT
from exitlens.functional.risk import select_exits

FOLDER = Path("runs/guarantees")
TRACES = ("garments-egt", "scenes-baseline", "scenes-egt")
CALIBRATION = 2000  # samples that choose a policy
GROUPS, LARGEST = 4000, 50  # in a population of groups; samples in the largest


def load_trace(name: str) -> xl.Trace:
    """Return a trace of ``TRACES``, or ``scenes-egt-drifted`` (other backgrounds), of samples that its network never saw."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data, kind, *drifted = name.split("-")
        net = xl.load(f"runs/demo-full/training/{kind}/bundle")[0] if data == "scenes" else train_garment_net(kind)
        xl.collect(net, make_unseen(data, 0.1 if drifted else 0.8), batch_size=256).save(path)
    return xl.Trace.load(path)


def make_unseen(data: str, agreement: float) -> xl.data.ImageSet:
    parts = [load_garments(split) for split in ("calibration", "test")]
    images, labels = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    if data == "garments":
        return xl.data.ImageSet(images[:, None], labels, CLASSES)
    made = [xl.demo.make_scenes(images, labels, CLASSES, background_agreement=agreement, seed=seed) for seed in (91, 92)]
    return xl.data.ImageSet(torch.cat([part.images for part in made]), torch.cat([part.labels for part in made]), CLASSES)


def train_garment_net(kind: str) -> xl.ExitNet:
    torch.manual_seed(0)
    train, validation = xl.demo.load_fashion("train"), xl.demo.load_fashion("validation")
    net = xl.attach(xl.build_backbone("small", 10, 1), ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 1, 28, 28))
    net.describe(classes=CLASSES, preprocess=xl.data.Preprocess((28, 28), (0.5,), (0.25,)))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fit gives it back as it was
    xl.fit(net, train, validation, loss=EGT if kind == "egt" else WITHOUT, epochs=4, progress=False)
    return net.eval()


@cache
def train_scene_net(epochs: int = 4) -> xl.ExitNet:
    """Return a network for the demo's scenes, trained on first use (a minute or two)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, validation = (xl.demo.load_scenes(split) for split in ("train", "validation"))
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, train.first(1).inputs)
    xl.fit(
        net, train, validation, epochs=epochs, out_dir=FOLDER / f"scenes-{epochs}", resume=True, keep="last", progress=False
    )
    return net.eval()


@cache
def recall_trace(name: str) -> xl.Trace:
    """Return a trace of :func:`load_trace`, or a synthetic population such as ``synthetic-1``, once a process."""
    torch.set_num_threads(1)
    kind, _, number = name.partition("-")
    make = {"synthetic": make_population, "labels": make_label_population, "groups": make_groups}.get(kind)
    return load_trace(name) if make is None else make(int(number))


def make_population(kind: int, count: int = 20_000) -> xl.Trace:
    """Synthetic samples that stand for a distribution: draws from them, with replacement, have exactly known risks.

    Kind 0: scores that tell right from wrong, fine. Kind 1: five different scores an exit, so that one step too far
    along the path is a large step. Kind 2: early exits that are as good as the final one where they are sure.
    """
    rng = torch.Generator().manual_seed(100 + kind)
    sure = draw_sure(kind, count, rng)
    final_wrong = torch.rand(count, generator=rng) < 0.1
    rate = (1 - sure) * (0.3 if kind == 2 else 0.5)
    slips = torch.rand(count, 3, generator=rng) < rate
    wrong = torch.where(slips, torch.rand(count, 3, generator=rng) < 0.6, final_wrong[:, None])
    wrong[:, 2] = final_wrong
    logits = torch.zeros(count, 3, 4)
    logits.scatter_(2, wrong.long()[..., None], (2 + 6 * sure)[..., None])
    labels = torch.zeros(count, dtype=torch.long)
    return xl.Trace(logits, labels, draw_divergence(sure, rng), torch.tensor([0.2, 0.5, 1.0]))


def draw_sure(kind: int, count: int, rng: torch.Generator) -> Tensor:  # -> (N,3) in [0, 1]
    sure = torch.rand(count, 3, generator=rng)
    sure[:, 2] = 1
    if kind == 1:
        sure[:, :2] = (sure[:, :2] * 5).floor() / 5 + 0.1
    return sure


def draw_divergence(sure: Tensor, rng: torch.Generator) -> Tensor:  # (N,3) -> (N,3)
    return (torch.rand(sure.shape, generator=rng) * (1 - sure) * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)


def make_label_population(kind: int, count: int = 20_000) -> xl.Trace:
    """As :func:`make_population`, of samples with any number of five labels, of which one is rare.

    Kind 0: scores that tell right from wrong, fine, and errors of all kinds. Kind 1: five different scores an exit. Kind 2:
    early exits that err by missing labels only, while the final exit misses some that they find.
    """
    rng = torch.Generator().manual_seed(200 + kind)
    labels = torch.rand(count, 5, generator=rng) < torch.tensor([0.5, 0.4, 0.3, 0.2, 0.05])
    sure = draw_sure(kind, count, rng)
    rate = (1 - sure)[..., None] * 0.25  # of errors, for each label
    rate[:, 2] = 0.04
    err = torch.rand(count, 3, 5, generator=rng) < rate
    if kind == 2:
        err &= labels[:, None]
    told = labels[:, None] ^ err
    size = (0.3 + 5 * sure)[..., None] * (1 if kind == 1 else 0.6 + 0.8 * torch.rand(count, 3, 5, generator=rng))
    return xl.Trace(torch.where(told, size, -size), labels, draw_divergence(sure, rng), torch.tensor([0.2, 0.5, 1.0]))


def make_groups(kind: int) -> xl.Trace:
    """Groups of 1 to 50 samples, in some of which the early exits are wrong about most samples, and sure.

    Kind 0: whatever the size. Kind 1: the more samples, the likelier. Kind 2: all samples of a group are the same.
    """
    rng = torch.Generator().manual_seed(200 + kind)
    sizes = torch.randint(1, LARGEST + 1, (GROUPS,), generator=rng)
    groups = torch.arange(GROUPS).repeat_interleave(sizes)

    def draw(*shape: int) -> Tensor:  # a group's samples share it
        return torch.rand(GROUPS, *shape, generator=rng)[groups]

    def draw_samples(*shape: int) -> Tensor:
        return draw(*shape) if kind == 2 else torch.rand(len(groups), *shape, generator=rng)

    share = 2 * sizes / LARGEST if kind == 1 else torch.ones(GROUPS)
    blind = draw() < 0.05 * share[groups]
    sure = 0.6 * draw(3) + 0.4 * draw_samples(3)
    sure[blind] = 1 - 0.3 * (1 - sure[blind])
    sure[:, 2] = 1
    final_wrong = draw_samples() < 0.1
    slips = draw_samples(3) < (1 - sure) * 0.4
    wrong = torch.where(slips, draw_samples(3) < 0.6, final_wrong[:, None])
    missed = blind[:, None] & (draw_samples(3) < torch.tensor([0.8, 0.4, 0.0]))
    wrong = (wrong | missed).scatter(1, torch.full((len(groups), 1), 2), final_wrong[:, None])
    logits = torch.zeros(len(groups), 3, 4).scatter(2, wrong.long()[..., None], (2 + 6 * sure)[..., None])
    spread = draw(3) * (1 - sure) + 0.5 * missed
    divergence = (spread * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)
    labels = torch.zeros(len(groups), dtype=torch.long)
    return xl.Trace(logits, labels, divergence, torch.tensor([0.2, 0.5, 1.0]), groups=groups)


def draw_groups(trace: xl.Trace, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw groups with replacement: indices of their samples, and the draw to which each belongs."""
    sizes = torch.bincount(trace.groups)
    starts, chosen = sizes.cumsum(0) - sizes, torch.randint(len(sizes), (count,), generator=rng)
    drawn = torch.arange(count).repeat_interleave(sizes[chosen])
    within = torch.arange(len(drawn)) - (sizes[chosen].cumsum(0) - sizes[chosen])[drawn]
    return starts[chosen][drawn] + within, drawn


def split_randomly(name: str, first: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(recall_trace(name)), generator=torch.Generator().manual_seed(seed))
    return order[:first], order[first:]


def answer_on_paper(trace: xl.Trace, policy: xl.Policy) -> xl.Prediction:
    exits = xl.route(trace, policy)
    p = torch.stack([(trace.logits[:, k] / policy.temperatures[k]).softmax(1) for k in range(trace.num_exits)], 1)
    chosen = p[torch.arange(len(p)), exits]
    return xl.Prediction(chosen.argmax(1), exits, select_exits(p.amax(2), exits), chosen)


def run_in_parallel(work: Callable[..., Any], *arguments: Any, seeds: Sequence[int]) -> list[Any]:
    """Call ``work(*arguments, seed)`` for every seed, in processes side by side."""
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8), warnings.simplefilter, ("ignore",)) as pool:
        return pool.map(partial(work, *arguments), seeds, chunksize=4)
