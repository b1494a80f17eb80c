"""The promises of docs/measured/pictures.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

from benchmarks.pictures.runs import SEEDS
from benchmarks.promises import Promise
from benchmarks.study.report.figures import interval

LEAST_DIFFERENCE, MOST_RATIO = -0.3, 1.15


def list_promises(runs: Mapping[str, Any]) -> Iterator[Promise]:
    """Those that there are figures for."""
    pairs = [runs[f"pair-{seed}"] for seed in SEEDS if f"pair-{seed}" in runs]
    if len(pairs) == len(SEEDS):
        points = [100 * pair["difference"] for pair in pairs]
        what = "pictures: final exit minus the plain network, points"
        yield Promise("pictures|final", what, mean(points), ">=", LEAST_DIFFERENCE, interval(points)[1])
    if "step-0" in runs:
        what = "pictures: a training step with exits over the plain network's"
        yield Promise("pictures|step", what, runs["step-0"]["ratio"][0], "<=", MOST_RATIO)
