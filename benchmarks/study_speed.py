"""Wall-clock of the study's networks against the plain backbone of their seed, side by side in one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from exitlens.delivery.bundle import load
from exitlens.delivery.speed import compare_adaptive
from study_data import Splits
from study_run import backbone_of

LIMIT, METHOD, BATCH, IMAGES, ROUNDS = "0.005, certified", "egt", 64, 2048, 7


def measure(data: str, seed: int, splits: Splits, results: Path, runs: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Times both on the first test images; the thresholds are those that were certified on calibration data."""
    found = json.loads((results / data / f"{METHOD}-{seed}.json").read_text())
    plain_found = json.loads((results / data / f"plain-{seed}.json").read_text())
    policy = found["policies"][LIMIT]
    net = load(runs / data / f"{METHOD}-{seed}" / "bundle", backbone=backbone_of(splits))[0]
    module = backbone_of(splits).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shared = load(runs / data / f"plain-{seed}" / "bundle", backbone=module)[0]  # it shares its weights with the module
    shared.eval()
    module.eval()
    thresholds = tuple(math.inf if t is None else t for t in policy["thresholds"])
    chosen = xl.Policy(thresholds, temperatures=tuple(policy["temperatures"]))
    test, first = next(iter(splits.tests.items()))
    speed = compare_adaptive(module, net, chosen, first.first(IMAGES).inputs, BATCH, rounds)
    accuracy = plain_found["tests"][test]["accuracy"][-1]
    return {
        "limit": LIMIT,
        "speed": speed.to_dict(),
        "threads": torch.get_num_threads(),
        "cost": policy[test]["cost"],
        "accuracy": policy[test]["accuracy"],
        "plain_accuracy": accuracy,
        "accuracy_drop": accuracy - policy[test]["accuracy"],
    }
