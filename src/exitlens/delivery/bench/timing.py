"""Timing side by side: several ways to do the same work, in turn in one process, with medians and their uncertainty."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from exitlens.model.malloc import keep_memory

Work = Callable[[], Sequence[float]]  # does the work once; seconds of every call that a user would wait for


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
    medians = (
        x[rows].median(1).values if len(x) % 2 else x[rows].sort(1).values[:, len(x) // 2 - 1 : len(x) // 2 + 1].mean(1)
    )
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(statistics.median(x.tolist()), low, high)


class Times:
    """What :func:`interleave` measured: by name, seconds of every round, and of every call in it."""

    def __init__(self, rounds: Mapping[str, list[list[float]]]) -> None:
        self.rounds = rounds

    def seconds(self, name: str) -> list[float]:
        """Seconds of each round."""
        return [sum(calls) for calls in self.rounds[name]]

    def ratio(self, slow: str, fast: str) -> Interval:
        """Time of ``slow`` over time of ``fast``, of each round, so that what the machine does meanwhile cancels."""
        pairs = zip(self.seconds(slow), self.seconds(fast), strict=True)
        return interval([one / other for one, other in pairs])

    def summary(self, name: str, samples: int) -> dict[str, Any]:
        """JSON-ready: milliseconds a sample, a call's p50 and p95, samples a second."""
        each = interval([1000 * s / samples for s in self.seconds(name)])
        calls = torch.tensor([1000 * s for calls in self.rounds[name] for s in calls], dtype=torch.float64)
        p50, p95 = calls.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
        return {
            "ms": each.to_list(),
            "call_p50_ms": round(p50, 4),
            "call_p95_ms": round(p95, 4),
            "per_second": round(1000 / each.median, 2),
        }


def interleave(works: Mapping[str, Work], *, rounds: int = 5, seconds: float = 0.0, most: int = 60) -> Times:
    """Runs all works in turn, each round in another (seeded) random order, after one warm-up each.

    What runs before leaves its weights in the caches; so no work may always follow the same other one.

    Args:
        works: by name.
        rounds: at least so many; they go on until ``seconds`` have passed, but not beyond ``most`` rounds.
    """
    for work in works.values():
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


def time_calls(run: Callable[[Any], object], batches: Sequence[Any], kept: bool = False) -> Work:
    """The work of running each batch, one call after the other; of several batches the first is run once before, untimed.

    Args:
        run: called with each batch.
        batches: in order.
        kept: whether the process keeps its memory meanwhile; after a change the first batch is run once untimed, too.
    """

    def work() -> list[float]:
        if keep_memory(kept) or len(batches) > 1:
            run(batches[0])
        spent = []
        for batch in batches:
            started = time.perf_counter()
            run(batch)
            spent.append(time.perf_counter() - started)
        return spent

    return work


def measure_peak_bytes(work: Work) -> int:
    """The most memory for tensors that one run of the work held beyond what there was before (CPU)."""
    with _without_messages(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    result = run.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in result.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _without_messages() -> Iterator[None]:
    """Nothing on the process's standard error for a while: PyTorch's profiler writes there whenever it starts and stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def pin_threads(threads: int) -> Iterator[None]:
    """``threads`` of PyTorch on as many processors, for a while."""
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(threads)
    if allowed is not None:
        os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)
