"""Where the results are kept."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Store

TRACES = Store(RESULTS / "traces.csv", Path("runs/traces"))
