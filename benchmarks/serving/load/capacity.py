"""How much load something takes: the highest rate at which 99 % of the answers come in time, and none fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Protocol

from benchmarks.serving.load.trials import Spec, Trial, make_plan, run_load

BUSY = 0.85  # part of its time for which the load may compute before it is what limits


class Measured(Protocol):
    """What a trial has to say."""

    @property
    def p99(self) -> float:
        """Seconds."""

    @property
    def failures(self) -> int:
        """Answers that are none."""

    @property
    def busy(self) -> float:
        """Part of the time for which the load itself computed."""


@dataclass(frozen=True)
class Attempt:
    """One trial: its rate, 99th percentile in seconds, failures, and the part of the time for which the load computed."""

    rate: float
    p99: float
    failures: int
    busy: float

    def passes(self, limit: float) -> bool:
        """Whether all came, and 99 % of them in time."""
        return not self.failures and self.p99 <= limit


@dataclass(frozen=True)
class Capacity:
    """What :func:`find_capacity` found.

    Attributes:
        rate: requests a second; 0: none passed.
        p99: seconds, of the trials that confirmed it: median, least, most.
        is_of_the_load: the load itself was at its limit at a rate that did not pass: more may be possible.
        attempts: all trials, in turn.
    """

    rate: float
    p99: tuple[float, float, float]
    is_of_the_load: bool
    attempts: list[Attempt] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class _Search:
    """Trials at one limit, with a memory."""

    def __init__(self, run_at: Callable[[float], Measured], limit: float, tries: int) -> None:
        self.run_at, self.limit, self.tries, self.attempts = run_at, limit, tries, list[Attempt]()

    def attempt(self, rate: float) -> Attempt:
        found = self.run_at(rate)
        self.attempts.append(Attempt(rate, found.p99, found.failures, found.busy))
        return self.attempts[-1]

    def passes(self, rate: float) -> bool:
        """Whether one of some trials passes: what else runs on a machine only ever makes one fail."""
        return any(self.attempt(rate).passes(self.limit) for _ in range(self.tries))

    def bracket(self, start: float, least: float, most: float) -> tuple[float, float]:
        """A rate that passes and one that does not, a factor of two apart; 0 and ``least`` where none passes."""
        low, high = (start, 2 * start) if self.passes(start) else (start / 2, start)
        if high == start:
            while low >= least and not self.passes(low):
                low, high = low / 2, low
            return (low, high) if low >= least else (0.0, high)
        while high <= most and self.passes(high):
            low, high = high, 2 * high
        return low, high


def find_capacity(
    run_at: Callable[[float], Measured],
    limit_s: float,
    start: float,
    *,
    spread: float = 0.04,
    repeats: int = 3,
    tries: int = 2,
    least: float = 1.0,
    most: float = 50_000.0,
) -> Capacity:
    """The highest rate whose 99th percentile is within the limit, with no failure.

    Doubles or halves, bisects, and confirms: the median of ``repeats`` further trials has to pass, else the rate is lowered.

    Args:
        run_at: a trial at a rate, warm-up included; other arrivals each time.
        limit_s: seconds.
        spread: how exact the rate is: this part of it to both sides.
        tries: how often a rate is tried before it counts as too high.
        least, most: rates at which the search ends.
    """
    search = _Search(run_at, limit_s, tries)
    low, high = search.bracket(start, least, most)
    while low and high / low > 1 + 2 * spread:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if search.passes(middle) else (low, middle)
    p99 = (float("inf"),) * 3
    while low >= least:
        confirming = [search.attempt(low) for _ in range(repeats)]
        ordered = sorted(one.p99 for one in confirming)
        if median(ordered) <= limit_s and median(one.failures for one in confirming) == 0:
            p99 = (median(ordered), ordered[0], ordered[-1])
            break
        low /= 1 + spread
    rate = low if p99[0] <= limit_s else 0.0
    failed = [one for one in search.attempts if one.rate > rate and not one.passes(limit_s)]
    return Capacity(rate, p99, any(one.busy > BUSY for one in failed), search.attempts)


def make_trials(
    spec: Spec, *, seconds: float = 4.0, warmup: float = 1.0, shares: tuple[float, ...] = ()
) -> Callable[[float], Trial]:
    """For :func:`find_capacity`: runs ``spec``'s requests at a rate, with other arrivals each time; its plan is not used."""
    seeds = itertools.count()

    def run_at(rate: float) -> Trial:
        plan = make_plan([(rate, warmup + seconds)], len(spec.requests), shares=shares, seed=next(seeds))
        return run_load(replace(spec, plan=plan, warmup=warmup))

    return run_at
