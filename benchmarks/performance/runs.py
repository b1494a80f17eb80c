"""The runs of the benchmark of speed, NETWORK-THREADS, and the CSV that keeps them with a column for every number of threads."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Layout, Store


def split_name(name: str) -> tuple[str, str]:
    """Network and threads of ``resnet50-2``."""
    network, _, threads = name.rpartition("-")
    return network, threads


LAYOUT = Layout(("network",), split_name, "{}-{}".format)
PERFORMANCE = Store(RESULTS / "performance.csv", Path("runs/performance"), LAYOUT)
