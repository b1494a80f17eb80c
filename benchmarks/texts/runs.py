"""The runs, reviews/CONDITION-SEED as the networks of benchmarks.truth are called, and the CSV that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.store import RESULTS, Store, Tree
from benchmarks.study.runs import LAYOUT
from benchmarks.truth.conditions import EGT, PLAIN, WITHOUT
from benchmarks.truth.tasks import count_seeds

RUNS = Path("runs/texts")
TEXTS = Store(RESULTS / "texts.csv", RUNS, LAYOUT)
CONDITIONS = (WITHOUT, EGT, "paper")
SEEDS = (0, 1, 2)


def name_run(condition: str, seed: int) -> str:
    return f"reviews/{condition}-{seed}"


def list_runs() -> dict[str, tuple[str, int]]:
    """Condition and seed by name, seed by seed."""
    pairs = [(one, seed) for seed in SEEDS for one in CONDITIONS if seed < count_seeds("reviews", one)]
    return {name_run(*pair): pair for pair in pairs}


def read_plain(truth: Mapping[str, Tree]) -> list[float]:
    """Accuracy of the plain networks, by seed, which benchmarks.truth trains and measures on the same test part."""
    names = [name_run(PLAIN, seed) for seed in SEEDS]
    return [float(truth[name]["tests"]["test"]["accuracy"][-1]) for name in names if name in truth]
