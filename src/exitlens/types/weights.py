"""What of a state dict went into a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHOWN = 4  # names in a line
Say = Callable[[str], None]  # what to do with a line for people


@dataclass(frozen=True)
class WeightsReport:
    """The tensors of a state dict that went into a backbone, and the others; ``str()`` gives lines for people.

    Attributes:
        source: the file, or the name of the pretrained weights.
        loaded: names of the backbone's tensors that were set.
        anew: tensors of its classifier that stay random, because the source has another number of classes or no classifier.
        missing, misshapen: others that stay random, because the source lacks them, or has them in another shape.
        unused: tensors of the source that went nowhere.
        seen_through: wrappers and prefixes of names that were ignored, in words.

    Examples:
        >>> report = xl.types.WeightsReport("weights.pth", loaded=("conv.weight",), unused=("head.bias",))
        >>> report.is_whole
        True
    """

    source: str
    loaded: tuple[str, ...]
    anew: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    seen_through: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True if all of the backbone but its classifier was set."""
        return not self.missing and not self.misshapen

    def lines(self) -> list[str]:
        """Return a line on the tensors that were loaded, and one for each kind of tensor that was not."""
        through = f" ({'; '.join(self.seen_through)})" if self.seen_through else ""
        kinds = (
            (self.anew, "the classifier is made anew, for the classes of the data"),
            (self.missing, "not in the source, so random"),
            (self.misshapen, "of another shape in the source, so random"),
            (self.unused, "in the source, of no use here"),
        )
        notes = [f"{words}: {list_names(names)}" for names, words in kinds if names]
        return [f"{len(self.loaded)} tensors from {self.source}{through}", *notes]

    def __str__(self) -> str:
        return "\n".join(f"weights: {line}" for line in self.lines())

    def tell_misfits(self, say: Say | None) -> None:
        """Say which pretrained weights did not fit, if any."""
        if say is not None:
            for line in self.lines()[1:]:
                say(f"weights: {self.source}: {line}")


def list_names(names: Sequence[str]) -> str:
    """Join names, the first few of many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
