"""One piece of work on a folder, in a process of its own, so that its memory can be watched.

Usage: python -m benchmarks.loading.work first-batch|fit|collect|evaluate FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.data.batches import make_epoch_loader
from exitlens.data.sources import open_source
from exitlens.types import Preprocess

SIDE, BATCH, WORKERS = 32, 256, 2


class Least(nn.Module):
    """Two convolutions: nearly all time goes into reading."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.b(self.a(x))).flatten(1))


def read_first_batch(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    train = open_source(str(folder), size=SIDE).load("train")
    listed = time.perf_counter() - started
    batch = next(iter(make_epoch_loader(train, BATCH, 0, WORKERS)))  # type: ignore[arg-type]
    assert len(batch.labels) == BATCH
    return {"seconds": time.perf_counter() - started, "listing_seconds": listed, "images": len(train)}


def run(verb: str, folder: Path) -> dict[str, float]:
    torch.manual_seed(0)
    net = xl.attach(Least(), ["a"], 10, torch.zeros(1, 3, SIDE, SIDE))
    data, _ = xl.load_folder(folder, Preprocess((SIDE, SIDE)))
    data.workers = WORKERS
    started = time.perf_counter()
    if verb == "fit":
        train, val = xl.split_set(data, (0.9, 0.1))
        xl.fit(net, train, val, epochs=1, batch_size=BATCH, progress=False)
    else:
        trace = xl.collect(net.eval(), data, batch_size=BATCH)
        if verb == "evaluate":
            xl.evaluate(trace, xl.Policy((0.5,)))
    return {"seconds": time.perf_counter() - started, "images": len(data)}


if __name__ == "__main__":
    _, verb, folder = sys.argv
    print(json.dumps(read_first_batch(Path(folder)) if verb == "first-batch" else run(verb, Path(folder))))
