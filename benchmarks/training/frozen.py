"""An epoch of heads on a frozen backbone: with features kept from the first one, without, and of a linear probe.

Images are noise: what an epoch costs does not depend on them. Seconds are those that one thread computed for, so that other
processes do not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import exitlens as xl
from exitlens.progress import show_progress
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.frozen import FeatureCache, keep_features
from exitlens.workflow.training.run import TrainingRun
from exitlens.workflow.training.step import use_memory_format

CLASSES, BATCH = 16, 64


@dataclass(frozen=True)
class Case:
    """A network and how much of data."""

    source: str
    pixels: int
    head: str = "context"
    samples: int = 128
    validation: int = 64


CASES = {
    "efficientnet_lite0": Case("timm:tf_efficientnet_lite0", 128),
    "efficientnet_lite0-evidence": Case("timm:tf_efficientnet_lite0", 128, "evidence"),
    "resnet18": Case("torchvision:resnet18", 128),
    "small": Case("small", 40, samples=512),
}


def make_data(count: int, pixels: int, seed: int) -> xl.ImageSet:
    """Noise of as many classes."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, pixels, pixels), generator=rng, dtype=torch.uint8)
    names = tuple(f"class {i}" for i in range(CLASSES))
    return xl.ImageSet(images, torch.arange(count) % CLASSES, names)


def start_run(case: Case, train: xl.ImageSet, epochs: int) -> TrainingRun:
    """Heads on a frozen backbone, before the first epoch."""
    torch.manual_seed(0)
    at: Any = ["layer1", "layer2", "layer3"] if case.source == "small" else 3
    backbone = xl.build_backbone(case.source, CLASSES)
    net = xl.attach(backbone, at, CLASSES, train.first(1).inputs, head=case.head)  # type: ignore[arg-type]
    settings = TrainingSettings(epochs=epochs, batch_size=BATCH, learning_rate=1e-3, amp=False, freeze_backbone=True)
    return TrainingRun(net, xl.EGTLoss(), settings, workers=0)


def time_probe(features: FeatureCache) -> float:
    """Seconds an epoch of one linear layer for each exit, on its averaged features."""
    pooled = [value.flatten(2).mean(2) for name, value in features.columns.items() if name.endswith(".0")]
    layers = [torch.nn.Linear(x.shape[1], CLASSES) for x in pooled]
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=1e-3)
    started = time.process_time()
    for rows in torch.randperm(len(features.labels)).split(BATCH):
        outputs: list[Tensor] = [layer(x[rows]) for layer, x in zip(layers, pooled, strict=True)]
        loss = torch.stack([F.cross_entropy(out, features.labels[rows]) for out in outputs]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - started


def measure(case: Case, rounds: int = 3) -> dict[str, Any]:
    """Epochs of two runs in turn; the first of each is left out."""
    torch.set_num_threads(1)
    train, val = (make_data(count, case.pixels, seed) for seed, count in enumerate((case.samples, case.validation)))
    plain, kept = (start_run(case, train, rounds + 1) for _ in range(2))
    seconds: dict[str, list[float]] = {"every epoch": [], "kept": [], "probe": []}
    with use_memory_format(plain.net, True), use_memory_format(kept.net, True), show_progress(False) as bar:
        started = time.process_time()
        kept.frozen = keep_features(kept.net, kept.loss, kept.settings, train, val, bar=bar)
        once = time.process_time() - started
        assert kept.frozen is not None
        for epoch in range(rounds + 1):
            for name, run in (("every epoch", plain), ("kept", kept)):
                started = time.process_time()
                run.save(run.train_epoch(epoch, train, val, bar))
                seconds[name].append(time.process_time() - started)
            seconds["probe"].append(time_probe(kept.frozen.train))
    size = sum(value.numel() * value.element_size() for value in kept.frozen.train.columns.values())
    weights = [torch.cat([p.detach().flatten() for p in run.net.heads.parameters()]) for run in (plain, kept)]
    ratios = [a / b for a, b in zip(seconds["every epoch"][1:], seconds["kept"][1:], strict=True)]
    return {
        "samples": case.samples,
        "pixels": case.pixels,
        "seconds": {name: [round(float(v), 4) for v in np.percentile(s[1:], (50, 0, 100))] for name, s in seconds.items()},
        "seconds_once": round(once, 3),
        "speedup": [round(float(v), 2) for v in np.percentile(ratios, (50, 0, 100))],
        "kb_a_sample": round(size / case.samples / 1e3, 1),
        "furthest_weight": float((weights[0] - weights[1]).abs().max()),
    }
