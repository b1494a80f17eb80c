"""The runs of the study: their names, and the CSV that keeps them with a column for every seed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Layout, Store

TUNING_SEED = 1000  # of sweeps and trials, which choose what the study then compares
OF_TUNING = ("sweep", "trials")


def split_name(name: str) -> tuple[str, str, str]:
    """Data set, condition and seed of ``scenes/egt-0``, or of ``sweep/kl-0.1``."""
    data, _, rest = name.partition("/")
    if data in OF_TUNING:
        return data, rest, str(TUNING_SEED)
    condition, _, seed = rest.rpartition("-")
    return data, condition, seed


def join_name(data: str, condition: str, seed: str) -> str:
    """The way back."""
    return f"{data}/{condition}" if data in OF_TUNING else f"{data}/{condition}-{seed}"


LAYOUT = Layout(("data", "condition"), split_name, join_name)


def study_store(path: Path, runs: Path) -> Store:
    """A store of study runs."""
    return Store(path, runs, LAYOUT)


STUDY = study_store(RESULTS / "study.csv", Path("runs/study"))
QUICK = study_store(Path("runs/study-quick/study.csv"), Path("runs/study-quick"))
