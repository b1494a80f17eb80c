"""Images a second against torchvision's ImageFolder and PyTorch's DataLoader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import exitlens as xl
from exitlens.data.batches import make_epoch_loader
from exitlens.types import IMAGENET_MEAN, IMAGENET_STD

SIDE, BATCH, WORKERS = 224, 64, 2


def measure_throughput(photographs: Path, cache: Path, rounds: int) -> dict[str, Any]:
    """Whole epochs, shuffled, of all loaders in turn, from starting the processes to the last normalised batch."""
    data, _ = xl.load_folder(photographs, xl.Preprocess((SIDE, SIDE), IMAGENET_MEAN, IMAGENET_STD))
    cached = data.cached(cache)
    steps = [transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    theirs = ImageFolder(str(photographs), transforms.Compose(steps))
    loaders: dict[str, Callable[[int], Any]] = {
        "torchvision": lambda seed: DataLoader(theirs, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS),
        "exitlens": lambda seed: make_epoch_loader(data, BATCH, seed, WORKERS),
        "exitlens, cached": lambda seed: make_epoch_loader(cached, BATCH, seed, WORKERS),
    }
    _count(make_epoch_loader(cached, 1, 0, WORKERS))  # fills the cache and warms the page cache
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for seed in range(rounds):
        for name in list(loaders)[:: 1 if seed % 2 else -1]:
            started = time.perf_counter()
            images = _count(loaders[name](seed))
            found[name].append(images / (time.perf_counter() - started))
    ratios = {
        name: [one / other for one, other in zip(found[name], found["torchvision"], strict=True)]
        for name in list(loaders)[1:]
    }
    return {
        "images": len(data),
        "rounds": rounds,
        "images_per_second": {name: _spread(values) for name, values in found.items()},
        "over_torchvision": {name: _spread(values) for name, values in ratios.items()},
    }


def _count(loader: Any) -> int:
    return sum(len(batch[0]) for batch in loader)


def _spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [statistics.median(values), min(values), max(values)]
