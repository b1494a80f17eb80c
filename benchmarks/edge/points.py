"""How fast the thresholds of docs/measured/static.md are where both sides run in ONNX Runtime.

Exit shares and points lost are those that were measured there on test data, by networks that were trained (one for each seed);
times need no training, so here the same networks answer with random weights, and as many samples leave at each exit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.backbones.edge import wake
from benchmarks.edge.speed import measure_speed
from benchmarks.static.compare import of_test
from benchmarks.static.runs import ADAPTIVE, STATIC
from benchmarks.truth.tasks import SEEDS, TASKS, build_network

FIRST = {"scenes": "agreeing", "fashion": "test"}  # the test set whose shares are taken
SIZE, COUNT = 64, 512


def measure_points(task: str, seconds: float = 15.0) -> dict[str, Any]:
    """By seed: shares, points lost and times, batch 64, one core."""
    found: dict[str, Any] = {}
    opened = TASKS[task](0)
    test = opened.tests[FIRST[task]]
    images = test.subset(torch.arange(COUNT)).inputs
    pick = of_test(FIRST[task], "accuracy")
    for seed in range(SEEDS[task]):
        run = STATIC.read()[f"{task}/{ADAPTIVE}-{seed}"]
        shares = tuple(run["fast"]["tests"][FIRST[task]]["exit_shares"])
        net = build_network(opened, seed, exits=True)
        wake(net)
        plain: nn.Module = opened.build()
        one = measure_speed((plain.eval(), net, images), SIZE, 1, shares=shares, count=COUNT, seconds=seconds)
        found[str(seed)] = one | {"points_lost": 100 * (pick(run["full"]) - pick(run["fast"]))}
        print(f"  {task} {seed}: {one['plain_over_runtime']}", flush=True)
    return found
