"""Where the figures of training are kept."""

from pathlib import Path

from benchmarks.store import RESULTS, Store

STEP = "step-"  # what runs of steps are called before their task
TRAINING = Store(RESULTS / "training.csv", Path("runs/training"))
