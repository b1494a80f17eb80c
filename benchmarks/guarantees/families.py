"""Which data make calibrate warn that samples look alike: independent ones should not, pictures of few objects should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

import exitlens as xl
from benchmarks.guarantees.traces import load_scene_net, load_unseen, train_garment_net
from exitlens.data.fashion import CLASSES
from exitlens.functional.grouping.likeness import measure_likeness

FAMILIES = ((41, 25), (400, 5), (1000, 2), (10, 100))  # objects, pictures of each
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they come": lambda labels: torch.arange(len(labels)),
    "sorted by class": lambda labels: labels.argsort(stable=True),
    "shuffled": lambda labels: torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)),
}


def list_scenes() -> Iterator[tuple[str, xl.ImageSet]]:
    """Independent scenes, pictures of the same garments in several scenes, and scenes with altered copies."""
    for split in ("validation", "calibration", "test"):
        yield f"independent, {split}", xl.load_scenes(split)  # type: ignore[arg-type]
    images, labels = load_unseen()
    for count, size in FAMILIES:
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(count))[:count].repeat_interleave(size)
        scenes = xl.make_scenes(images[rows], labels[rows], CLASSES, background_agreement=0.8, seed=7)
        yield f"{count:,} objects, {size} pictures each", scenes
        yield f"{count:,} pictures, {size} altered copies each", alter(xl.load_scenes("test"), count, size)


def list_garments() -> Iterator[tuple[str, xl.ImageSet]]:
    """Independent garments, and altered copies."""
    for split in ("validation", "calibration", "test"):
        yield f"independent, {split}", xl.load_fashion(split)  # type: ignore[arg-type]
    for count, size in FAMILIES:
        yield f"{count:,} pictures, {size} altered copies each", alter(xl.load_fashion("test"), count, size)


def alter(data: xl.ImageSet, count: int, size: int) -> xl.ImageSet:
    """Copies side by side, mirrored or not, turned, moved and scaled a little."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(count))[:count]
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(8, (0.06, 0.06), (0.92, 1.08))])
    with torch.random.fork_rng():
        torch.manual_seed(count)
        copies = torch.stack([change(data.images[row]) for row in rows.tolist() for _ in range(size)])
    return xl.ImageSet(copies, data.labels[rows].repeat_interleave(size), data.classes, preprocess=data.preprocess)


def measure_families(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, net, sets in (
        ("scenes", load_scene_net("egt"), list_scenes()),
        ("garments", train_garment_net("egt"), list_garments()),
    ):
        for name, data in sets:
            trace = xl.collect(net, data.first(300) if quick else data, batch_size=256)
            assert trace.labels is not None
            for order, rearrange in ORDERS.items():
                rows = rearrange(trace.labels)
                likeness = measure_likeness(xl.Trace(trace.logits[rows], None, trace.divergence[rows], trace.cost))
                assert likeness is not None
                one = {"lag": likeness.lag, "rank": round(likeness.rank, 3), "deviation": round(likeness.deviation, 1)}
                found.setdefault(kind, {}).setdefault(name, {})[order] = one | {"warned": likeness.is_suspicious}
    return found
