"""Comparisons of a network with exits and its rivals, and which of them to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PLAIN = "plain"  # name of the backbone without early exits
SAME_TIME = 1.05  # a rival takes no longer if its ratio of times may be this low


@dataclass(frozen=True)
class Contender:
    """Measurements of one network on the test samples.

    Attributes:
        gain: points of accuracy over the network with exits, and the ends of its interval; those of all rivals hold together
            with 95 %.
        ms: milliseconds a sample. ratio: its time over that of the network with exits, with the ends of its interval.
        agreement: share of answers that are the plain backbone's; ``None`` if that was not trained.
        binding: share of answers that stay when all but the fifth that the map shows comes from other samples; ``None``
            without maps.
    """

    name: str
    title: str
    accuracy: float
    gain: tuple[float, ...]
    ms: float
    ratio: tuple[float, ...]
    agreement: float | None = None
    binding: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A run beside its rivals, the run first. ``network`` and ``rule`` say which network and policy it was."""

    contenders: tuple[Contender, ...]
    samples: int
    groups: int | None
    batch_size: int
    machine: Mapping[str, Any]
    network: str
    rule: str

    @property
    def rival(self) -> Contender | None:
        """The most accurate of the others that may take no longer than the network with exits."""
        quick = (each for each in self.contenders[1:] if each.ratio[1] <= SAME_TIME)
        return max(quick, key=lambda each: each.accuracy, default=None)

    @property
    def advice(self) -> str:
        """One sentence that says which to take, and another about the most accurate of those that take longer."""
        ours, *others = self.contenders
        slow = [each for each in others if each.ratio[1] > SAME_TIME]
        sentences = []
        if (best := self.rival) is None:
            sentences.append("Take the network with exits if it is accurate enough: nothing else that was tried is as fast.")
        else:
            gap, low, high = best.gain
            if high < 0:
                sentences.append(
                    f"Take the network with exits: at {ours.ms:.3g} ms it is {-gap:.1f} points ({-high:.1f} to {-low:.1f}) "
                    f"more accurate than the {best.title}, the best of those that may take no longer."
                )
            elif low > 0:
                sentences.append(
                    f"Take the {best.title}: at {best.ms:.3g} ms against {ours.ms:.3g} it is {gap:.1f} points ({low:.1f} to "
                    f"{high:.1f}) more accurate than the network with exits."
                )
            else:
                sentences.append(
                    f"Undecided between the network with exits and the {best.title}, which takes {best.ratio[0]:.2f} times "
                    f"as long: its accuracy differs by {gap:+.1f} points ({low:+.1f} to {high:+.1f})."
                )
        if slow:
            most = max(slow, key=lambda each: each.accuracy)
            gap, low, high = most.gain
            gained = f"{gap:+.1f} points ({low:+.1f} to {high:+.1f})"
            sentences.append(f"The {most.title} has {gained} in {most.ratio[0]:.2f} times the time.")
        return " ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return asdict(self)

    def tabulate(self) -> list[list[str]]:
        """Return rows of text, the head first."""
        rows = [["", "accuracy %", "points over the exits", "ms a sample", "times the time", "same as plain %", "binding %"]]
        for each in self.contenders:
            gain, low, high = each.gain
            is_first = each is self.contenders[0]
            shown = ["" if is_first else f"{gain:+.1f} ({low:+.1f} to {high:+.1f})", f"{each.ms:.3g}"]
            shown.append("1" if is_first else "{:.2f} ({:.2f} to {:.2f})".format(*each.ratio))
            shares = ["" if share is None else f"{100 * share:.1f}" for share in (each.agreement, each.binding)]
            rows.append([each.title, f"{100 * each.accuracy:.1f}", *shown, *shares])
        return rows
