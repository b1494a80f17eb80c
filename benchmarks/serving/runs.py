"""Where the figures of servers are kept."""

from pathlib import Path

from benchmarks.store import RESULTS, Store

SERVING = Store(RESULTS / "serving.csv", Path("runs/serving-results"))
