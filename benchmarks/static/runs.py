"""The runs, TASK/adaptive-SEED, TASK/CANDIDATE-SEED and TASK/time-SEED, and the CSV with a column for every seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.store import RESULTS, Store
from benchmarks.study.runs import LAYOUT
from benchmarks.truth.runs import TRUTH

ADAPTIVE, TIME = "adaptive", "time"
STATIC = Store(RESULTS / "static.csv", Path("runs/static"), LAYOUT)
_QUICK = Path("runs/static-quick")


@dataclass(frozen=True)
class Place:
    """Where runs and networks are kept.

    Attributes:
        store: of the runs.
        trained: the folder of the full networks and of ours, TASK/CONDITION-SEED, which ``benchmarks.truth`` trains, too.
        most: samples of every set, and one epoch; 0: everything.
    """

    store: Store
    trained: Path
    most: int = 0


WHOLE = Place(STATIC, TRUTH.runs)
QUICK = Place(Store(_QUICK / "static.csv", _QUICK / "runs", LAYOUT), _QUICK / "truth", most=96)
