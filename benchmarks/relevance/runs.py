"""Where the figures of relevance maps are kept."""

from pathlib import Path

from benchmarks.store import RESULTS, Store

RELEVANCE = Store(RESULTS / "relevance.csv", Path("runs/relevance"))
