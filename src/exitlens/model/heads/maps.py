"""Whether the exits of a network have maps: hidden features of a vector are no locations."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from exitlens.errors import InputError
from exitlens.model.heads.exit_heads import ExitHead


def have_maps(heads: Iterable[nn.Module]) -> bool:
    """Whether the exits of a network have maps."""
    return all(head.has_map for head in heads if isinstance(head, ExitHead))


def require_maps(heads: Iterable[nn.Module], purpose: str) -> None:
    """Raises :class:`InputError` if the exits of a network have no maps."""
    if not have_maps(heads):
        raise InputError(
            f"net: {purpose} needs attention maps, and this network's exits have none: hidden features of a vector are no "
            "locations. Name groups of features: xl.attach(..., groups={'blood': [0, 1], ...})"
        )
