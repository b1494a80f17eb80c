"""The one timer: several ways to do the same work, in turn in one process, with medians and their uncertainty."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Sequence[float]]  # does the work once and returns the seconds of every call


def describe_machine(threads: int) -> dict[str, Any]:
    """Return what figures were measured on."""
    return {
        "processor": _read_processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _read_processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
    """Return the median of ``values`` with a 95 % interval."""
    x = torch.tensor(list(values), dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    medians = x[torch.randint(len(x), (resamples, len(x)), generator=rng)].quantile(0.5, 1)
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
        """Milliseconds a sample, the median over rounds."""
        return 1000 * statistics.median(self.seconds(name)) / samples

    def ratio(self, slow: str, fast: str) -> Interval:
        """Time of ``slow`` over time of ``fast`` in the same round, so that other load on the machine cancels out."""
        return interval([a / b for a, b in zip(self.seconds(slow), self.seconds(fast), strict=True)])

    def summary(self, name: str, samples: int) -> dict[str, Any]:
        """JSON-ready: milliseconds a sample, p50 and p95 of a call, samples per second."""
        ms = interval([1000 * s / samples for s in self.seconds(name)])
        calls = torch.tensor([1000 * s for calls in self.rounds[name] for s in calls], dtype=torch.float64)
        p50, p95 = calls.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
        return {
            "ms": ms.to_list(),
            "call_p50_ms": round(p50, 4),
            "call_p95_ms": round(p95, 4),
            "per_second": round(1000 / ms.median, 2),
        }


def interleave(
    works: Mapping[str, Work], *, rounds: int = 5, seconds: float = 0.0, most: int = 60, warm_up: bool = True
) -> Times:
    """Run all works in turn, each round in another (seeded) random order.

    The order changes because each work leaves the caches in a state that the next one profits or suffers from.

    Args:
        works: by name.
        rounds: the least number of rounds.
        seconds: further rounds start until these have passed.
        most: the largest number of rounds.
        warm_up: whether each work runs once before, untimed.
    """
    for work in works.values() if warm_up else ():
        work()
    calls: dict[str, list[list[float]]] = {name: [] for name in works}
    names, started, done = list(works), time.perf_counter(), 0
    rng = torch.Generator().manual_seed(0)
    while done < rounds or (time.perf_counter() - started < seconds and done < most):
        for i in torch.randperm(len(names), generator=rng).tolist():
            calls[names[i]].append(list(works[names[i]]()))
        done += 1
    return Times(calls)
