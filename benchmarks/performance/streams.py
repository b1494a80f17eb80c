"""Streams of batches: how fast they are answered, and what a process that answers one holds."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.performance.networks import NETWORKS, Network, make_scenes
from exitlens.delivery.bench.timing import time_calls
from exitlens.model.timing import interleave

LOADER_BATCH = 8


def time_stream(net: xl.ExitNet, network: Network, count: int) -> dict[str, Any]:
    """A stream in loader batches of 8: survivors that wait for company, against each batch on its own."""
    twin = copy.deepcopy(net)
    known = make_scenes(net, 1024) if network.source == "bundle" else torch.randn(256, 3, network.pixels, network.pixels)
    policy = choose_shares(twin, known, (0.5, 0.3, 0.0, 0.2))
    batches = list(known.split(LOADER_BATCH))

    def load(images: int) -> Iterator[Tensor]:
        for i in range(images // LOADER_BATCH):
            yield batches[i % len(batches)]

    shares = torch.zeros(twin.num_exits)

    def answer_stream(images: int) -> None:
        for pred in xl.predict_stream(twin, load(images), policy):
            shares.add_(pred.exits.bincount(minlength=twin.num_exits))

    def answer_batches(images: int) -> None:
        for batch in load(images):
            xl.predict(twin, batch, policy)

    chunk = max(count // 10, LOADER_BATCH)
    kept = twin.tuning.keep_memory
    works = {"batch by batch": time_calls(answer_batches, [chunk], kept), "stream": time_calls(answer_stream, [chunk], kept)}
    times = interleave(works, rounds=10)
    return {
        "samples": chunk * 10,
        "loader_batch": LOADER_BATCH,
        "shares": (shares / shares.sum()).tolist(),
        "gain": times.ratio("batch by batch", "stream").to_list(),
        "rows": {name: times.summary(name, chunk) for name in works},
    }


def choose_shares(net: xl.ExitNet, images: Tensor, shares: tuple[float, ...]) -> xl.Policy:
    """Thresholds at which these images leave in these shares: between two neighbouring scores, exit by exit."""
    logits = xl.collect(net, images).logits
    rest, thresholds = torch.arange(len(images)), []
    for k, share in enumerate(shares[:-1]):
        leave = round(share * len(images))
        if leave == 0:
            thresholds.append(float("inf"))
            continue
        scores = logits[rest, k].softmax(1).amax(1).sort(descending=True)
        thresholds.append((scores.values[leave - 1] + scores.values[min(leave, len(rest) - 1)]).item() / 2)
        rest = rest[scores.indices[leave:]]
    return xl.Policy(tuple(thresholds))


def measure_memory(name: str) -> dict[str, Any]:
    """What a process of its own holds while it answers a stream, without memory being kept."""
    network = NETWORKS[name]
    _, net, images, policy = network.build()
    net.tuning = xl.Tuning(micro_batch=32, channels_last=True, folded=True)
    batches = list(images[:256].split(LOADER_BATCH))

    def predictions(count: int) -> Iterator[xl.Prediction]:
        loaded = (batches[i % len(batches)] for i in range(count // LOADER_BATCH))
        return xl.predict_stream(net, loaded, policy or xl.Policy.never(4))

    return {"samples": network.stream, "resident_mb": read_resident_memory(predictions, network.stream)}


def read_resident_memory(predictions: Callable[[int], Iterator[xl.Prediction]], count: int) -> list[float]:
    """Megabytes that the process holds after each fifth of one stream."""
    found, seen = [], 0
    marks = [count * i // 5 // LOADER_BATCH * LOADER_BATCH for i in range(1, 6)]
    for pred in predictions(count):
        seen += len(pred)
        if marks and seen >= marks[0]:
            marks.pop(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
    return found
