"""Figures of runs: one from each run, over seeds, paired by seed, and with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from scipy import stats

from benchmarks.curves import area_under_curve
from benchmarks.store import Store

Run = dict[str, Any]  # what one run found
Rows = dict[str, dict[int, Run]]  # of one data set, by condition and seed
Pick = Callable[[Run], float]
PLAIN, AVERAGE = "plain", "average"
STATIC = ("static-10", "static-25", "static-50")


def load_rows(store: Store, data: str) -> Rows:
    """All runs of one data set, by condition and seed in the order of their names."""
    rows: Rows = {}
    runs = store.read()
    for name in sorted(name for name in runs if name.startswith(f"{data}/")):
        key, _, seed = name.removeprefix(f"{data}/").rpartition("-")
        rows.setdefault(key, {})[int(seed)] = dict(runs[name])
    for key in STATIC:  # costs in units of the plain backbone of the seed, as all others
        for seed, found in rows.get(key, {}).items():
            plain = rows.get(PLAIN, {}).get(seed)
            found["cost"] = [found["macs"] / plain["macs"]] if plain else [float("nan")]
            found["area"] = found["area_common"] = float("nan")  # one network is no curve: see find_static_areas
    return rows


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its t-interval; infinite for one value."""
    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def over_seeds(rows: Rows, condition: str, pick: Pick) -> list[float]:
    return [pick(found) for _, found in sorted(rows[condition].items())]


def pair(rows: Rows, first: str, second: str, pick: Pick, of_second: Pick | None = None) -> list[float]:
    """Differences of the seeds that both have."""
    seeds = sorted(rows[first].keys() & rows[second].keys())
    return [pick(rows[first][seed]) - (of_second or pick)(rows[second][seed]) for seed in seeds]


def share_seed(rows: Rows, *keys: str) -> bool:
    """Whether there is a seed that all of these conditions have."""
    return bool(set.intersection(*(set(rows.get(key, {})) for key in keys)))


def accuracy(exit_index: int, test: str = "") -> Pick:
    """In points; on the first test set if none is named."""

    def pick(found: Run) -> float:
        tests = found["tests"]
        return float(100 * tests[test or next(iter(tests))]["accuracy"][exit_index])

    return pick


def consistency(measure: str, field: str, exit_index: int | None = None, test: str = "") -> Pick:
    """Of one early exit, or the mean over the early exits."""

    def pick(found: Run) -> float:
        tests = found["tests"]
        early = tests[test or next(iter(tests))]["consistency"][measure][field][:-1]
        return float(mean(early) if exit_index is None else early[exit_index])

    return pick


def faithfulness(measure: str, exit_index: int) -> Pick:
    """One measure of one exit; deletion against random cells."""

    def pick(found: Run) -> float:
        table = found["faithfulness"]
        value = float(table[measure][exit_index])
        return value - float(table["deletion_random"][exit_index]) if measure == "deletion" else value

    return pick


def area(found: Run) -> float:
    """Under the curve of one common threshold, in %: nothing about it was chosen."""
    return float(100 * found["area_common"])


def find_static_areas(rows: Rows) -> dict[int, float]:
    """(i): of the plain backbone and the narrower ones together, one area for each seed."""
    keys = (*STATIC, PLAIN)
    areas = {}
    for seed in sorted(set.intersection(*(set(rows.get(key, {})) for key in keys))):
        found = {key: rows[key][seed] for key in keys}
        points = [(one["macs"] / found[PLAIN]["macs"], accuracy(-1)(one) / 100) for one in found.values()]
        areas[seed] = area_under_curve(points, guess=found[PLAIN]["guess"], hull=False)
    return areas
