"""How long calibration takes."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from typing import Any

import torch

import exitlens as xl


def time_calibration(quick: bool) -> dict[str, Any]:
    """50,000 samples, 4 exits, three risks, one core."""
    torch.set_num_threads(1)
    rng, count = torch.Generator().manual_seed(0), 50_000
    labels = torch.randint(0, 10, (count,), generator=rng)
    logits = torch.randn(count, 4, 10, generator=rng)
    logits += torch.tensor([2.0, 3.0, 4.0, 5.0])[None, :, None] * torch.nn.functional.one_hot(labels, 10)[:, None]
    divergence = torch.rand(count, 4, generator=rng) * torch.tensor([0.5, 0.3, 0.1, 0.0])
    trace = xl.Trace(logits, labels, divergence, torch.tensor([0.1, 0.3, 0.6, 1.0]))
    limits = {"max_accuracy_drop": 0.01, "max_disagreement": 0.1, "max_divergence": 0.1}
    seconds = []
    for seed in range(2 if quick else 7):
        started = time.perf_counter()
        policy = xl.calibrate(replace(trace), **limits, delta=0.1, seed=seed)  # type: ignore[arg-type]
        seconds.append(round(time.perf_counter() - started, 3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "samples": count,
        "exits": 4,
        "seconds": seconds,
        "peak_mb_of_the_process": round(peak),
        "cost": policy.calibration.cost,
    }
