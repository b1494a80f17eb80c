"""The one timer: several ways to do the same work, in turn in one process, with medians and their uncertainty."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from exitlens.model.malloc import keep_memory
from exitlens.types.inputs import count_rows

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


def time_calls(run: Callable[[Any], object], batches: Sequence[Any], kept: bool = False) -> Work:
    """The work of running each batch in order; the first of several runs once before, untimed.

    Args:
        run: called with each batch.
        batches: in order.
        kept: whether the process keeps its memory meanwhile; after a change the first batch runs once untimed, too.
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


@dataclass(frozen=True)
class Speed:
    """How much faster a second function is than a first.

    Attributes:
        batch_size: samples in a call.
        speedup: time of the first over time of the second in the same round, the median over rounds.
        low: end of its 95 % interval. high: the other end.
        plain_ms: median milliseconds for each sample, of the first function. ours_ms: of the second.
        images: samples in a round.
        rounds: how many.
    """

    batch_size: int
    speedup: float
    low: float
    high: float
    plain_ms: float
    ours_ms: float
    images: int
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(
    first: Callable[..., Any],
    second: Callable[..., Any],
    batches: Sequence[tuple[Any, ...]],
    rounds: int,
    kept: bool = False,
) -> Speed:
    """Times two functions on the same batches of arguments; ``kept`` as in :func:`time_calls`, for the second."""
    works = {
        "first": time_calls(lambda batch: first(*batch), batches),
        "second": time_calls(lambda batch: second(*batch), batches, kept),
    }
    times = interleave(works, rounds=rounds)
    sizes = [count_rows(batch[0]) for batch in batches]
    ratio, count = times.ratio("first", "second"), sum(sizes)
    plain_ms, ours_ms = (times.median_ms(name, count) for name in works)
    return Speed(sizes[0], ratio.median, ratio.low, ratio.high, plain_ms, ours_ms, count, rounds)


def measure_peak_bytes(work: Work) -> int:
    """The most memory that one run of the work held for tensors at once, beyond what was held before (CPU)."""
    with _silence_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    result = run.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in result.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Silences the process's standard error: PyTorch's profiler writes there whenever it starts and stops."""
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
    """Gives PyTorch ``threads`` threads on as many processors inside the block."""
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
