"""The runs, TASK/CONDITION-SEED, and the CSV that keeps them with a column for every seed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Store
from benchmarks.study.runs import LAYOUT

SERIES = Store(RESULTS / "series.csv", Path("runs/series"), LAYOUT)
