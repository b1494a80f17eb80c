"""The one timer: several ways to do the same work, in turn in one process, with medians and their uncertainty."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], Sequence[float]]  # does the work once and returns the seconds of every call


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval (percentile bootstrap over rounds)."""

    median: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        """JSON-ready: median, low, high."""
        return [round(v, 6) for v in (self.median, self.low, self.high)]


def interval(values: Sequence[float], resamples: int = 2000) -> Interval:
    """The median of ``values`` and a 95 % interval for it."""
    x = torch.tensor(list(values), dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(len(x), (resamples, len(x)), generator=rng)
    medians = x[rows].quantile(0.5, 1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(statistics.median(x.tolist()), low, high)


class Times:
    """What :func:`interleave` measured: for each name the seconds of every call in every round."""

    def __init__(self, rounds: Mapping[str, list[list[float]]]) -> None:
        self.rounds = rounds

    def seconds(self, name: str) -> list[float]:
        """Seconds of each round."""
        return [sum(calls) for calls in self.rounds[name]]

    def median_ms(self, name: str, samples: int = 1) -> float:
        """Milliseconds for each sample, the median over rounds."""
        return 1000 * statistics.median(self.seconds(name)) / samples

    def ratio(self, slow: str, fast: str) -> Interval:
        """Time of ``slow`` over time of ``fast`` in the same round, so that other load on the machine cancels."""
        pairs = zip(self.seconds(slow), self.seconds(fast), strict=True)
        return interval([one / other for one, other in pairs])

    def summary(self, name: str, samples: int) -> dict[str, Any]:
        """JSON-ready: milliseconds for each sample, p50 and p95 of a call, samples per second."""
        each = interval([1000 * s / samples for s in self.seconds(name)])
        calls = torch.tensor([1000 * s for calls in self.rounds[name] for s in calls], dtype=torch.float64)
        p50, p95 = calls.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
        return {
            "ms": each.to_list(),
            "call_p50_ms": round(p50, 4),
            "call_p95_ms": round(p95, 4),
            "per_second": round(1000 / each.median, 2),
        }


def interleave(
    works: Mapping[str, Work], *, rounds: int = 5, seconds: float = 0.0, most: int = 60, warm_up: bool = True
) -> Times:
    """Runs all works in turn, each round in another (seeded) random order.

    Whatever runs first leaves its weights in the caches, so no work may always follow the same other one.

    Args:
        works: by name.
        rounds: the least number of rounds.
        seconds: further rounds are begun until they have passed.
        most: the largest number of rounds.
        warm_up: whether each work runs once before, untimed.
    """
    for work in works.values() if warm_up else ():
        work()
    found: dict[str, list[list[float]]] = {name: [] for name in works}
    names, started, done = list(works), time.perf_counter(), 0
    rng = torch.Generator().manual_seed(0)
    while done < rounds or (time.perf_counter() - started < seconds and done < most):
        for i in torch.randperm(len(names), generator=rng).tolist():
            name = names[i]
            found[name].append(list(works[name]()))
        done += 1
    return Times(found)
