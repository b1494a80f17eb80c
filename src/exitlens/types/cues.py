"""Cues: parts of inputs that the answers of an early exit hang on, more than the final exit's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from exitlens.types.outputs import exit_name

CueKind = Literal["place", "background", "channel", "level", "texture", "words", "input"]
Ignorable = Tensor | tuple[str, ...] | Literal["background"] | None


@dataclass(frozen=True)
class CueExample:
    """One sample whose answer became the class of another, with a part of it.

    Attributes:
        sample, donor, swapped: tensors of each, without the batch axis, in the order of the network's inputs.
        before, after: the exit's answers, in words. donor_class: what the donor is.
    """

    sample: tuple[Tensor, ...]
    donor: tuple[Tensor, ...]
    swapped: tuple[Tensor, ...]
    before: str
    after: str
    donor_class: str


@dataclass(frozen=True)
class Cue:
    """A part of the inputs that the answers of an early exit hang on.

    Attributes:
        kind: ``place`` (a fixed one), ``background``, ``channel`` (or feature), ``level`` (mean and standard deviation:
            colour, brightness), ``texture`` (amplitudes of frequencies), ``words`` of a kind, or ``input``: one of several.
        name: the part, in words.
        exit: the early exit that hangs on it most.
        changed: for each exit, the share of answers that change when the part comes from a sample of another class.
        transfer: for each exit, the share that become that sample's class, among all pairs.
        control: the same, when the part comes from a third sample, of a class other than the second's.
        excess: transfer less control at ``exit``, less the same at the final exit (only transfers, if that is less); of a
            background by masks, nothing is subtracted for the final exit.
        interval: its confidence interval, for all parts that were tried at once.
        classes: names (or numbers) of the classes that it carries: their own excess is half of ``excess`` or more.
        ignore: what ``xl.fit(ignore=)`` takes: a mask ``(*S)`` ``bool`` of a place, names of channels, words, or
            ``"background"`` (outside the masks); ``None`` if the part has no such form (colour, texture).
        examples: a few samples whose answer became the donor's class.
    """

    kind: CueKind
    name: str
    exit: int
    changed: tuple[float, ...]
    transfer: tuple[float, ...]
    control: tuple[float, ...]
    excess: float
    interval: tuple[float, float]
    classes: tuple[str, ...]
    ignore: Ignorable = field(default=None, compare=False)
    examples: tuple[CueExample, ...] = field(default=(), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a mask becomes nested lists, and examples their answers."""
        values = {name: value for name, value in vars(self).items() if name not in ("ignore", "examples")}
        values |= {"ignore": self.ignore.tolist() if isinstance(self.ignore, Tensor) else self.ignore}
        answers = [(each.before, each.after, each.donor_class) for each in self.examples]
        return values | {"examples": [dict(zip(("before", "after", "donor"), each, strict=True)) for each in answers]}


@dataclass(frozen=True)
class Cues:
    """What :func:`exitlens.find_cues` returns.

    Attributes:
        cues: the clearest first: by the lower ends of their intervals.
        tried: number of parts that were tried. tested: those of them that were tested, on samples of their own.
        samples: samples that the parts were tested on. donors: donors for each of them.
        delta: chance that any part is listed whose excess is below ``least``.
        least: the excess that a listed part has at least.
    """

    cues: tuple[Cue, ...]
    tried: int
    tested: int
    samples: int
    donors: int
    delta: float
    least: float

    def __len__(self) -> int:
        return len(self.cues)

    def to_dict(self) -> Mapping[str, Any]:
        """Return all fields as JSON values."""
        return vars(self) | {"cues": [cue.to_dict() for cue in self.cues]}

    def tabulate(self) -> list[list[str]]:
        """Return a table for people, the head first; shares are in per cent, exit by exit."""
        shares = ["beyond the final exit (interval)", "answers taken over", "by chance", "changed"]
        rows = [["kind", "cue", "exit", *shares, "classes"]]
        for cue in self.cues:
            low, high = cue.interval
            exits = [" / ".join(f"{100 * v:.0f}" for v in column) for column in (cue.transfer, cue.control, cue.changed)]
            excess = f"{100 * cue.excess:.0f} ({100 * low:.0f} to {100 * high:.0f})"
            rows.append([cue.kind, cue.name, exit_name(cue.exit, len(cue.transfer)), excess, *exits, str(len(cue.classes))])
        return rows

    def describe(self) -> str:
        """Return in a line what was tried."""
        return f"{self.tried} parts tried, {self.tested} tested on {self.samples} samples with {self.donors} donors each"

    def __str__(self) -> str:
        rows = self.tabulate() if self.cues else [["no cue"]]
        return "\n".join([self.describe(), *("  ".join(row) for row in rows)])
