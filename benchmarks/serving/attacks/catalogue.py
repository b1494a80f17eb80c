"""Hostile requests of all kinds, by chance but always the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks.serving.attacks import bodies, files, wire  # noqa: F401 (these add their kinds)
from benchmarks.serving.attacks.making import MAKERS, Hostile


def list_kinds() -> list[str]:
    """All that there are."""
    return list(MAKERS)


def make_hostile(count: int, shape: Sequence[int], seed: int = 0) -> Iterator[Hostile]:
    """So many, of all kinds in turn and each with details by chance.

    Args:
        shape: of one sample of the model.
    """
    rng, kinds = random.Random(seed), list_kinds()
    for i in range(count):
        if i % len(kinds) == 0:
            rng.shuffle(kinds)
        kind = kinds[i % len(kinds)]
        made = MAKERS[kind](rng, shape)
        yield made if isinstance(made, Hostile) else Hostile(kind, (made,))
