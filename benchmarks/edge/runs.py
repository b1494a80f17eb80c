"""Where the figures of exported networks are kept."""

from pathlib import Path

from benchmarks.store import RESULTS, Store

EDGE = Store(RESULTS / "edge.csv", Path("runs/edge"))
