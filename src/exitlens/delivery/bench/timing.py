"""Timing calls: two functions side by side, the memory that they take, and the processors that they run on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from exitlens.model.process import keep_memory
from exitlens.model.timing import Work, interleave
from exitlens.types.inputs import count_rows


def time_calls(run: Callable[[Any], object], batches: Sequence[Any], kept: bool = False) -> Work:
    """Returns the work of running each batch in order; the first of several runs once before, untimed.

    With ``kept`` the process keeps its memory meanwhile; after a change the first batch runs once untimed, too.
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
    """Two functions timed side by side: the second is ``speedup`` times as fast as the first.

    Attributes:
        batch_size: samples in a call.
        speedup: time of the first over time of the second in the same round, the median over rounds.
        low, high: 95 % interval of ``speedup``.
        plain_ms, ours_ms: median milliseconds for each sample, of the first function and of the second.
        images: samples in a round.
        rounds: number of rounds.
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
    """Returns the most memory that a run of the work held for tensors at once, beyond what was held before (CPU)."""
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
