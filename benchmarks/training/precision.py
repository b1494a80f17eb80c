"""Times a training step in bfloat16, depthwise convolutions and attention in float32 as ``fit`` has them, against autocast and float32.

Usage: python -m benchmarks.training.precision [--backbone timm:tf_efficientnet_lite0] [--size 128] [--batch 32] [--rounds 7]

One thread; all in turn in one process. Prints the median and the quartiles of the seconds, and the ratio of the medians to ``fit``'s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

import exitlens as xl
from exitlens.model.precision import use_half_precision
from exitlens.model.process import keep_memory

CPU = torch.device("cpu")
WAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "fit": lambda: use_half_precision(CPU, True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float32": nullcontext,
}


def measure(backbone: str, size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, by way."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 16, (batch,))
    net = xl.attach(backbone, 3, 16, images[:1], head="context").to(memory_format=torch.channels_last).train()
    images, loss = images.contiguous(memory_format=torch.channels_last), xl.EGTLoss().for_network(net.has_attention)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for i in range(rounds + 1):
        for name, enter in WAYS.items():
            started = time.perf_counter()
            with enter():
                outputs, relevance = (
                    net.with_relevance(images) if loss.needs_relevance else (net.with_separate_maps(images), None)
                )
            loss(outputs, labels, relevance=relevance).total.backward()
            if i:  # the first warms up
                found[name].append(time.perf_counter() - started)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    for name, value in (("size", 128), ("batch", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_memory()
    found = measure(**vars(given))
    base = np.median(found["fit"])
    for name, seconds in found.items():
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        print(f"{name:9} {middle:6.2f} s ({low:.2f} to {high:.2f}), {middle / base:.2f} times fit's")


if __name__ == "__main__":
    main()
