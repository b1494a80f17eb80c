"""Which data make calibrate warn that samples look alike: independent ones should not, pictures of few objects should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

import exitlens as xl
from exitlens.data.demo.garments import CLASSES, load_garments
from exitlens.functional.groups import measure_likeness

FAMILIES = ((41, 25), (400, 5), (1000, 2), (10, 100))  # objects, pictures of each
EPOCHS = {"scenes": 4, "garments": 3}  # of our small network
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they come": lambda labels: torch.arange(len(labels)),
    "sorted by class": lambda labels: labels.argsort(stable=True),
    "shuffled": lambda labels: torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)),
}


def load_split(kind: str, split: Any) -> xl.ImageSet:
    return xl.load_scenes(split) if kind == "scenes" else xl.load_fashion(split)


def train_net(kind: str, epochs: int) -> xl.ExitNet:
    torch.manual_seed(0)
    train, validation = load_split(kind, "train"), load_split(kind, "validation")
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, train.first(1).inputs)
    xl.fit(net, train, validation, loss=xl.EGTLoss(), epochs=epochs, progress=False)
    return net


def list_sets(kind: str) -> Iterator[tuple[str, xl.ImageSet]]:
    """Independent pictures; several scenes of each of few garments; altered copies of few pictures."""
    for split in ("validation", "calibration", "test"):
        yield f"independent, {split}", load_split(kind, split)
    yield "independent, 500 of calibration", load_split(kind, "calibration").first(500)
    images, labels = load_garments("test")
    for count, size in FAMILIES:
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(count))[:count]
        if kind == "scenes":
            many = rows.repeat_interleave(size)
            scenes = xl.make_scenes(images[many], labels[many], CLASSES, background_agreement=0.8, seed=7)
            yield f"{count:,} garments in {size} scenes each", scenes
        yield f"{count:,} pictures in {size} altered copies each", alter(load_split(kind, "test"), rows, size)


def alter(data: xl.ImageSet, rows: Tensor, size: int) -> xl.ImageSet:
    """Copies side by side: mirrored or not, turned, moved and scaled a little, and tinted."""
    tint = [v2.ColorJitter(0.2, 0.2)] if data.images.shape[1] == 3 else []
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(8, (0.06, 0.06), (0.92, 1.08)), *tint])
    torch.manual_seed(3)
    copies = torch.stack([change(data.images[row]) for row in rows.tolist() for _ in range(size)])
    return xl.ImageSet(copies, data.labels[rows].repeat_interleave(size), data.classes, preprocess=data.preprocess)


def measure_orders(logits: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:  # (N,K,C), (N,)
    """How much samples look alike in each order."""
    n, k, _ = logits.shape
    found = {}
    for order, rearrange in ORDERS.items():
        trace = xl.Trace(logits[rearrange(labels)], None, torch.zeros(n, k), torch.linspace(0.2, 1.0, k))
        likeness = measure_likeness(trace)
        assert likeness is not None
        found[order] = {
            "lag": likeness.lag,
            "rank": round(likeness.rank, 3),
            "deviation": round(likeness.deviation, 1),
            "warned": likeness.is_suspicious,
        }
    return found


def measure_families(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, epochs in EPOCHS.items():
        net = train_net(kind, 1 if quick else epochs)
        for name, data in list_sets(kind):
            trace = xl.collect(net, data, batch_size=128)
            assert isinstance(trace.logits, Tensor)
            assert trace.labels is not None
            found.setdefault(kind, {})[name] = measure_orders(trace.logits, trace.labels)
    return found
