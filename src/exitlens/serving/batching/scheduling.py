"""Which stage runs next, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

KEPT = 0.9  # of an average, at every new observation
KEPT_WORK = 0.995  # of what is known about samples, at every new one: those that leave late come seldom


class Pool(NamedTuple):
    """Samples that wait for one stage.

    Attributes:
        router: which it belongs to. stage: k. samples: that wait. entered: since when the first of
            them waits for company (``time.monotonic``).
        urgent: some of them have a deadline.
    """

    router: int
    stage: int
    samples: int
    entered: float
    urgent: bool = False


def choose_pool(pools: Sequence[Pool], size: int, now: float, max_delay: float) -> Pool:
    """The pool whose stage runs next, of those in which anybody waits.

    In this order: samples with a deadline, the deepest first; what has waited for company longer than ``max_delay``
    seconds, the longest first; the deepest in which a whole micro-batch of ``size`` waits; the first, so that whoever
    can leave early does so at once and the others collect company.
    """
    urgent = [one for one in pools if one.urgent]
    if urgent:
        return max(urgent, key=lambda one: one.stage)
    overdue = [one for one in pools if one.stage and now - one.entered > max_delay]
    if overdue:
        return min(overdue, key=lambda one: one.entered)
    full = [one for one in pools if one.samples >= size]
    return max(full, key=lambda one: one.stage) if full else min(pools, key=lambda one: one.stage)


class Pace:
    """How long stages take, learnt from those that ran: for each stage and each doubling of the number of samples."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._seconds_worked = self._samples = 0.0  # those of long ago for less

    @property
    def seconds_each(self) -> float:
        """Of work for each sample until it is answered; 0 before the first."""
        return self._seconds_worked / self._samples if self._samples else 0.0

    def observe(self, stage: int, count: int, seconds: float) -> None:
        """A stage ran on ``count`` samples."""
        key = stage, count.bit_length()
        before = self._seconds.get(key, seconds)
        self._seconds[key] = KEPT * before + (1 - KEPT) * seconds

    def observe_work(self, samples: float, seconds: float) -> None:
        """So many samples' work was done in ``seconds``, all that came between included.

        Samples on their way count by the share that is done: else those that are answered first, which all others were
        before in a stage, would seem to have cost what all did.
        """
        share = KEPT_WORK**samples
        self._seconds_worked = share * self._seconds_worked + seconds
        self._samples = share * self._samples + samples

    def forecast(self, stage: int, count: int) -> float:
        """Seconds that a stage will take on ``count`` samples, by the nearest number that was seen; 0 if none was."""
        known = [(abs(size - count.bit_length()), -size) for k, size in self._seconds if k == stage]
        return self._seconds[stage, -min(known)[1]] if known else 0.0

    def forecast_longest(self) -> float:
        """Seconds that any step has taken on average, at most."""
        return max(self._seconds.values(), default=0.0)
