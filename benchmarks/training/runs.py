"""Where the figures of training are kept."""

from pathlib import Path

from benchmarks.store import RESULTS, Store

TRAINING = Store(RESULTS / "training.csv", Path("runs/training"))
