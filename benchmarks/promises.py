"""Promises: what was measured beside the bar that it should reach, and why not where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

KNOWN_MISSES = Path(__file__).parent / "known_misses.json"


@dataclass(frozen=True)
class Promise:
    """One promise.

    Attributes:
        key: its name in the list of known misses.
        what: what was promised, in words.
        sense: on which side of the bar the measured figure should be.
        half: half the width of the 95 % interval of a mean.
        note: more about the figure, for tables: the interval, where the promise is about its lower end.
        track: which conditions of the study were compared; none for promises that are judged once.
        reason: why it is missed, from the list of known misses.
    """

    key: str
    what: str
    measured: float
    sense: Literal["<=", ">="]
    bar: float
    half: float | None = None
    note: str = ""
    track: str = ""
    reason: str = ""

    @property
    def is_kept(self) -> bool:
        return self.measured <= self.bar if self.sense == "<=" else self.measured >= self.bar

    @property
    def is_open(self) -> bool:
        """Whether the interval of the mean reaches over the bar: more seeds could turn the judgement."""
        return self.half is not None and abs(self.measured - self.bar) < self.half

    @property
    def title(self) -> str:
        return f"{self.what} [{self.track}]" if self.track else self.what

    def __str__(self) -> str:
        word = "ok     " if self.is_kept else "known  " if self.reason else "MISSED "
        return f"{word} {self.title:88} {self.measured:9.4g} {self.sense} {self.bar:.4g}"


def read_known_misses() -> dict[str, str]:
    """Reasons by pattern of keys."""
    known: dict[str, str] = json.loads(KNOWN_MISSES.read_text())
    return known


def add_reasons(promises: Iterable[Promise]) -> Iterator[Promise]:
    """The promises with the reason of the first pattern that fits."""
    known = read_known_misses()
    for promise in promises:
        reason = next((text for key, text in known.items() if fnmatch(promise.key, key)), "")
        yield replace(promise, reason=reason)
