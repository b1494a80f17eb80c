"""Promises: a measured figure beside the bar that it should reach, and the reason for a miss that is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from benchmarks.pages import table

KNOWN_MISSES = Path(__file__).parent / "known_misses.json"
Sense = Literal["<=", ">="]


@dataclass(frozen=True)
class Promise:
    """A promise and what was measured."""

    key: str  # name of the promise, which patterns in known_misses.json match
    what: str  # the promise in words
    measured: float
    sense: Sense  # side of the bar on which the figure should be
    bar: float
    half: float | None = None  # half the width of the figure's 95 % interval, if it has one
    note: str = ""  # text for tables, such as the interval of a promise about its lower end
    reason: str = ""  # why it is missed, from known_misses.json

    @property
    def is_kept(self) -> bool:
        return self.measured <= self.bar if self.sense == "<=" else self.measured >= self.bar

    @property
    def is_undecided(self) -> bool:
        """True if the bar lies within the interval: other seeds could turn the verdict."""
        return self.half is not None and abs(self.measured - self.bar) < self.half

    def __str__(self) -> str:
        verdict = "ok     " if self.is_kept else "known  " if self.reason else "MISSED "
        undecided = f"  (undecided: ± {self.half:.2g})" if self.is_undecided else ""
        return f"{verdict} {self.what:88} {self.measured:9.4g} {self.sense} {self.bar:.4g}{undecided}"


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean and half the width of its t-interval, which is infinite for a single value."""
    from scipy import stats

    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def promise_mean(key: str, what: str, values: Sequence[float], sense: Sense, bar: float) -> Promise:
    middle, half = interval(values)
    return Promise(key, what, middle, sense, bar, None if half == float("inf") else half)


def promise_end(
    key: str, what: str, values: Sequence[float], bar: float, end: Literal["lower", "upper"] = "lower"
) -> Promise:
    """Promise that one end of the mean's 95 % interval is at least the bar."""
    middle, half = interval(values)
    measured = middle - half if end == "lower" else middle + half
    return Promise(key, f"{what}, {end} end", measured, ">=", bar, note=f"({middle:.2g} ± {half:.2g})")


def read_known_misses() -> dict[str, str]:
    known: dict[str, str] = json.loads(KNOWN_MISSES.read_text())
    return known


def add_reasons(promises: Iterable[Promise]) -> list[Promise]:
    known = read_known_misses()
    return [
        replace(promise, reason=next((text for key, text in known.items() if fnmatch(promise.key, key)), ""))
        for promise in promises
    ]


def print_promises(promises: Iterable[Promise]) -> bool:
    """Print a line for each promise, then the known misses with their reasons. Return False if another one was missed."""
    known, used, ok = read_known_misses(), set(), True
    for promise in add_reasons(promises):
        print(promise)
        ok &= promise.is_kept or bool(promise.reason)
        used |= set() if promise.is_kept else {key for key in known if fnmatch(promise.key, key)}
    for key in sorted(used):
        print(f"known miss {key}: {known[key]}")
    return ok


def list_outdated(promises: Iterable[Promise]) -> list[str]:
    """Return the patterns of known misses that match no miss any more."""
    missed = [promise.key for promise in promises if not promise.is_kept]
    return sorted(pattern for pattern in read_known_misses() if not any(fnmatch(key, pattern) for key in missed))


def promise_table(promises: Iterable[Promise]) -> list[str]:
    """Return a table of promises, followed by the reasons of the missed ones; no line without promises."""
    rows, reasons = [], []
    for promise in add_reasons(promises):
        half = f" ± {promise.half:.2g}" if promise.half is not None else f" {promise.note}" if promise.note else ""
        kept = "yes" if promise.is_kept else "no"
        rows.append([promise.what, f"{promise.measured:.3g}{half}", f"{promise.sense} {promise.bar:g}", kept])
        reasons += [promise.reason] if promise.reason and not promise.is_kept else []
    notes = [f"- {reason}" for reason in dict.fromkeys(reasons)]
    return [*table(["promise", "measured", "bar", "kept"], rows), *(["", *notes] if notes else [])] if rows else []
