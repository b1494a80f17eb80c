"""Measured times: how long a batch takes at each exit, on one machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from exitlens.errors import InputError


@dataclass(frozen=True)
class Timing:
    """How long one batch takes when all its samples leave at an exit, on one machine (``collect(..., cost="time")``).

    Args:
        ms: K increasing milliseconds of one batch, the medians over rounds.
        low: K lower quartiles. high: K upper quartiles.
        whole_ms: of a batch that goes to the final exit without early heads, the median.
        batch_size: samples in the batch.
        threads: of PyTorch.
        machine: what it was measured on: processor, cores, device, versions.
        rounds: how often each exit was timed.

    Raises:
        InputError: for times that are not positive, finite and increasing, or do not fit one another.

    Examples:
        >>> timing = xl.Timing(ms=(1.0, 2.5), low=(0.9, 2.4), high=(1.1, 2.6), whole_ms=2.4, batch_size=1, threads=2)
        >>> timing.spread
        (0.2..., 0.08...)
    """

    ms: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    whole_ms: float
    batch_size: int
    threads: int
    machine: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1

    def __post_init__(self) -> None:
        try:
            for name in ("ms", "low", "high"):
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            numbers = [*self.ms, *self.low, *self.high, float(self.whole_ms)]
        except (TypeError, ValueError) as error:
            raise InputError(f"timing: expected milliseconds of each exit ({error})") from error
        if not self.ms or not len(self.ms) == len(self.low) == len(self.high):
            counts = f"{len(self.ms)}, {len(self.low)}, {len(self.high)} numbers"
            raise InputError(f"timing: expected a time and two quartiles for each exit, got {counts}")
        if not all(0 < value < math.inf for value in numbers) or list(self.ms) != sorted(set(self.ms)):
            raise InputError(f"timing: expected positive milliseconds that increase from exit to exit, got {numbers}")
        for name in ("batch_size", "threads", "rounds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"timing: expected {name} of 1 or more, got {value!r}")
        if not isinstance(self.machine, Mapping):
            raise InputError(f"timing: expected a description of the machine by name, got {self.machine!r}")

    @property
    def spread(self) -> tuple[float, ...]:
        """For each exit the distance of its quartiles, over its median."""
        return tuple((high - low) / ms for ms, low, high in zip(self.ms, self.low, self.high, strict=True))

    @property
    def cost(self) -> tuple[float, ...]:
        """For each exit its time over that of the whole network without early heads."""
        return tuple(ms / self.whole_ms for ms in self.ms)

    def where(self) -> str:
        """What the times hold for, such as ``batches of 64 on AMD EPYC 7B13, 2 threads``."""
        name = str(self.machine.get("processor") or "this machine")
        if (device := self.machine.get("device", "cpu")) != "cpu":
            name = f"{device} ({name})"
        batches = "single samples" if self.batch_size == 1 else f"batches of {self.batch_size:,}"
        return f"{batches} on {name}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def __str__(self) -> str:
        triples = zip(self.ms, self.low, self.high, strict=True)
        each = (f"{format_ms(ms)} ({format_ms(low)} to {format_ms(high)})" for ms, low, high in triples)
        return f"{', '.join(each)} ms at the exits, with quartiles; {self.where()}"

    def list_ms(self) -> str:
        """The medians and what they hold for, in words."""
        return f"{', '.join(map(format_ms, self.ms))} ms at the exits, {self.where()}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ("ms", "low", "high")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timing:
        """Inverse of :meth:`to_dict`; raises :class:`InputError` where something is missing or wrong."""
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"timing: expected what Timing.to_dict gave ({error})") from error


def format_ms(value: float) -> str:
    """Three digits of a number of milliseconds."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def make_increasing(values: Sequence[float], step: float = 1e-4) -> tuple[float, ...]:
    """The numbers, each raised where it is not above the one before by the share ``step``."""
    found: list[float] = []
    for value in values:
        found.append(max(value, found[-1] * (1 + step)) if found else value)
    return tuple(found)
