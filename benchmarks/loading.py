"""Measure how image folders are read: seconds to the first batch, memory, and images a second against torchvision's loader.

Cells: first-batch, memory-fit, memory-collect, memory-evaluate (200,000 small JPEGs against 2,000), throughput (600 JPEGs like
photographs; both cores should be quiet). The files are made on first use, in runs/loading.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, spread, take_turns
from benchmarks.results import Runs, Tree
from benchmarks.servers import read_family
from exitlens.data.batches import make_epoch_loader
from exitlens.data.sources import open_source
from exitlens.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess

MANY, FEW, PHOTOGRAPHS, ROUNDS = 200_000, 2_000, 600, 7
CLASSES, WORKERS = 10, 2
SMALL, LARGE = (32, 256), (224, 64)  # side of an image and size of a batch, for memory and for throughput


def list_cells(quick: bool = False) -> dict[str, Job]:
    many, few, photographs, rounds = (2_000, 200, 130, 1) if quick else (MANY, FEW, PHOTOGRAPHS, ROUNDS)
    return {
        "first-batch": partial(measure_first_batch, many),
        **{f"memory-{verb}": partial(measure_memory, verb, many, few) for verb in ("fit", "collect", "evaluate")},
        "throughput": partial(measure_throughput, photographs, rounds),
    }


def find_folder(draw: Callable[[np.random.Generator], Image.Image], count: int) -> Path:
    """Return a folder with ``count`` JPEGs in ten classes, made once."""
    folder = STUDY.folder / f"{draw.__name__.removeprefix('draw_')}-{count}"
    if not folder.exists():
        unfinished, rng = folder.with_name(f"{folder.name}.{time.time_ns()}"), np.random.default_rng(0)
        for label in range(CLASSES):
            (unfinished / f"class{label}").mkdir(parents=True)
        for i in range(count):
            draw(rng).save(unfinished / f"class{i % CLASSES}" / f"{i:06}.jpg", quality=90)
        unfinished.rename(folder)
    return folder


def draw_small(rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BILINEAR)


def draw_photograph(rng: np.random.Generator) -> Image.Image:
    """Noise with detail at every scale, as photographs have; its JPEG takes about 60 kB."""
    width, height = 500, 375
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, np.float32) - 128) * (3 / cells) ** 0.5
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


def measure_first_batch(many: int) -> Tree:
    runs = [watch("first-batch", find_folder(draw_small, many))[0] for _ in range(3)]
    return {"files": many, "seconds": spread(runs)}


def measure_memory(verb: str, many: int, few: int) -> Tree:
    peaks = [watch(verb, find_folder(draw_small, count))[1] for count in (many, few)]
    return {"files": many, "few": few, "growth_mb": round(peaks[0] - peaks[1], 1)}


def watch(verb: str, folder: Path) -> tuple[float, float]:
    """Do one piece of work in a new process; return its seconds, and the peak memory (MB) of it and its children."""
    command = [sys.executable, "-m", "benchmarks.loading", verb, str(folder)]
    process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0.0
    while process.poll() is None:
        peak = max(peak, read_resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return float(process.stdout.read()), peak


def read_resident(pid: int) -> float:
    """Return the megabytes that a process and its descendants hold; 0 once it has ended."""
    return sum(read_family(pid, lambda process: process.memory_info().rss / 1e6))


def measure_throughput(count: int, rounds: int) -> Tree:
    """Time whole epochs, shuffled, of all loaders in turn, from starting their processes to the last normalised batch."""
    side, batch = LARGE
    folder = find_folder(draw_photograph, count)
    data = xl.data.load_folder(folder, xl.data.Preprocess((side, side), IMAGENET_MEAN, IMAGENET_STD))
    steps = [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    reference = ImageFolder(str(folder), transforms.Compose(steps))
    forked: dict[str, Any] = {"num_workers": WORKERS, "multiprocessing_context": "fork"}  # a cell's default is to spawn
    with tempfile.TemporaryDirectory() as temporary:
        cached = data.cached(Path(temporary) / "cache")
        loaders: dict[str, Callable[[int], Any]] = {
            "torchvision": lambda seed: DataLoader(reference, batch, shuffle=True, drop_last=True, **forked),
            "exitlens": lambda seed: make_epoch_loader(data, batch, seed, WORKERS),
            "exitlens, cached": lambda seed: make_epoch_loader(cached, batch, seed, WORKERS),
        }
        deque(make_epoch_loader(cached, 1, 0, WORKERS), 0)  # fills the cache and warms the page cache
        works = {name: lambda seed, make=make: deque(make(seed), 0) for name, make in loaders.items()}
        seconds = take_turns(works, rounds, warm_up=0, clock=time.perf_counter)
    images = len(data) // batch * batch  # what is left of the last batch is dropped by all
    rates = {name: [images / value for value in values] for name, values in seconds.items()}
    ratios = {name: [a / b for a, b in zip(rates[name], rates["torchvision"], strict=True)] for name in list(loaders)[1:]}
    return {
        "images": len(data),
        "rounds": rounds,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "over_torchvision": {name: spread(values) for name, values in ratios.items()},
    }


def make_least() -> nn.Module:
    """Make two convolutions and a classifier, so that nearly all time goes into reading."""
    first, second = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 8, 3, 1, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def do_work(verb: str, folder: Path) -> float:
    """Read the first batch of a folder, or fit, collect or evaluate on it; return the seconds that it took."""
    (side, batch), started = SMALL, time.perf_counter()
    torch.manual_seed(0)
    if verb == "first-batch":
        train = open_source(str(folder), size=side).load("train")
        assert len(next(iter(make_epoch_loader(train, batch, 0, WORKERS))).labels) == batch  # type: ignore[arg-type]
        return time.perf_counter() - started
    net = xl.attach(make_least(), ["1"], CLASSES, torch.zeros(1, 3, side, side))
    data = xl.data.load_folder(folder, Preprocess((side, side)))
    data.workers = WORKERS
    if verb == "fit":
        train, val = xl.data.split_set(data, (0.9, 0.1))
        xl.fit(net, train, val, epochs=1, batch_size=batch, progress=False)
    else:
        trace = xl.collect(net.eval(), data, batch_size=batch)
        if verb == "evaluate":
            xl.evaluate(trace, xl.Policy((0.5,)))
    return time.perf_counter() - started


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run, measured in runs.items():
        if run == "first-batch":
            what = f"{measured['files']:,} JPEGs in a folder: seconds to the first batch"
            yield Promise.of_median("loading|first batch", what, measured["seconds"], "<=", 20)
        elif run == "throughput":
            what, ratio = "images a second over torchvision's, 2 processes", measured["over_torchvision"]["exitlens"]
            yield Promise.of_median("loading|throughput", what, ratio, ">=", 0.95)
        else:
            what, few = f"{measured['files']:,} JPEGs: peak memory of {run.partition('-')[2]}", f"{measured['few']:,}"
            yield Promise(f"loading|{run}", f"{what} above that of {few}, MB", measured["growth_mb"], "<=", 300)


STUDY = Study("loading", list_cells, list_promises)

if __name__ == "__main__":
    print(do_work(sys.argv[1], Path(sys.argv[2])))
