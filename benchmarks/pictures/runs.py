"""The runs of this benchmark, KIND-SEED, and the CSV that keeps them with a column for every seed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Layout, Store

SEEDS = (0, 1, 2)


def split_name(name: str) -> tuple[str, str]:
    """Kind and seed of ``exits-2``."""
    kind, _, seed = name.rpartition("-")
    return kind, seed


LAYOUT = Layout(("kind",), split_name, "{}-{}".format)
PICTURES = Store(RESULTS / "pictures.csv", Path("runs/pictures/results"), LAYOUT)
