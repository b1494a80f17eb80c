"""A static network of the time that ours took: accuracy between the two neighbours in time, linearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from benchmarks.static.candidates import list_candidates, list_families
from benchmarks.static.runs import ADAPTIVE, TIME
from benchmarks.static.timing import FULL
from benchmarks.store import Tree
from benchmarks.truth.tasks import SEEDS

Runs = Mapping[str, Tree]
Pick = Callable[[Tree], float]


def find_timed_seeds(runs: Runs, task: str) -> list[int]:
    """Seeds of which ours and its times are there; what a static network takes does not depend on its weights."""
    return [s for s in range(SEEDS[task]) if all(f"{task}/{name}-{s}" in runs for name in (ADAPTIVE, TIME))]


def find_whole_seeds(runs: Runs, task: str) -> list[int]:
    """Seeds of which everything is there: ours, all static networks, and the times of them all."""
    whole = []
    for seed in range(SEEDS[task]):
        names = list_candidates(task, seed)
        if names and all(f"{task}/{name}-{seed}" in runs for name in (ADAPTIVE, TIME, *names)):
            whole += [seed] if names.keys() <= runs[f"{task}/{TIME}-{seed}"]["ms"].keys() else []
    return whole


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at ``at`` on the line through the two neighbours of (place, value).

    Before the first point it is the first one's: a static network that takes longer than ours is compared with, in its
    favour. Beyond the last one it is the last one's: the full network's, which takes less time than ours.
    """
    ordered = sorted(points)
    if at <= ordered[0][0]:
        return ordered[0][1]
    for (low, first), (high, second) in pairwise(ordered):
        if at <= high:
            return first + (second - first) * (at - low) / (high - low)
    return ordered[-1][1]


def list_ladder(runs: Runs, task: str, seed: int, family: str) -> Iterator[tuple[float, Tree]]:
    """Milliseconds a sample and what was measured, for the members of a family and, at its end, the full network."""
    times = runs[f"{task}/{TIME}-{seed}"]["ms"]
    for name, candidate in list_candidates(task, seed).items():
        if candidate.family == family:
            yield times[name][0], runs[f"{task}/{name}-{seed}"]
    yield times[FULL][0], runs[f"{task}/{ADAPTIVE}-{seed}"]["full"]


def find_time(runs: Runs, task: str, seed: int, test: str, fast: bool = False) -> float:
    """Milliseconds a sample that ours took on a test set; by the fast thresholds, on the first."""
    times = runs[f"{task}/{TIME}-{seed}"]
    return float(times["fast_ms"][0] if fast else times["adaptive_ms"][test][0])


def at_equal_time(runs: Runs, task: str, seed: int, family: str, test: str, pick: Pick, fast: bool = False) -> float:
    """A figure of the static network of a family that takes as long as ours does on ``test``."""
    points = [(ms, pick(found)) for ms, found in list_ladder(runs, task, seed, family)]
    return interpolate(points, find_time(runs, task, seed, test, fast))


def of_test(test: str, measure: str) -> Pick:
    """Picks a figure of a test set."""
    return lambda found: float(found["tests"][test][measure])


def list_tests(runs: Runs, task: str) -> list[str]:
    """The first is the one that is like the training data."""
    first = next(found for name, found in runs.items() if name.startswith(f"{task}/") and "tests" in found)
    return list(first["tests"])


def choose_family(runs: Runs, task: str) -> str:
    """The rival: the family that is best on validation data of seed 0 at the time that the fast thresholds take."""
    first = list_tests(runs, task)[0]

    def rate(family: str) -> float:
        return at_equal_time(runs, task, 0, family, first, lambda one: float(one["validation"]), fast=True)

    return max(list_families(task), key=rate)


def list_differences(runs: Runs, task: str, seeds: Sequence[int], family: str, test: str, fast: bool = False) -> list[float]:
    """Ours minus the static network, points of accuracy by seed."""
    pick = of_test(test, "accuracy")
    found = [(seed, runs[f"{task}/{ADAPTIVE}-{seed}"]) for seed in seeds]
    return [
        100 * (pick(one["fast"] if fast else one) - at_equal_time(runs, task, seed, family, test, pick, fast))
        for seed, one in found
    ]
