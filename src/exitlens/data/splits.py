"""Splits of a data set: disjoint parts, each of which is used for one thing only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError
from exitlens.modalities import Modality
from exitlens.types import Preprocessing
from exitlens.types.inputs import Inputs

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")


class Splittable(Protocol):
    """What :func:`split_set` needs of a data set."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` integers."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""

    def subset(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (``(n,)`` integers) as a set of its own."""


class SampleSet(Splittable, Protocol):
    """Labelled samples of one kind, in memory or on disk; item ``i`` is ``(inputs, label)`` without the batch axis."""

    modality: ClassVar[Modality]
    masks: Tensor | None  # (N,*S) bool: which locations carry the answer

    @property
    def inputs(self) -> Inputs:
        """All samples as a network's inputs: of small subsets, where they are not in memory."""

    @property
    def preprocess(self) -> Preprocessing:
        """How raw samples become inputs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Tensor]: ...

    def first(self, count: int) -> Self:
        """The first ``count`` samples (all, if there are fewer)."""


_Set = TypeVar("_Set", bound=Splittable)


def split_set(data: _Set, shares: Sequence[float], seed: int = 0) -> list[_Set]:
    """Disjoint random parts of a set with these shares of every class; the last part gets what is left over.

    Raises:
        DataError: if a class has too few samples to give every part one.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise InputError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    rng = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in range(len(data.classes)):
        where = (data.labels == label).nonzero().flatten()
        if 0 < len(where) < len(shares):
            raise DataError(f"data: class {data.classes[label]!r} has {len(where)} sample(s), need {len(shares)} or more")
        where = where[torch.randperm(len(where), generator=rng)]
        start = 0
        for i, share in enumerate(shares):
            left = len(shares) - 1 - i
            count = len(where) - start if left == 0 else min(max(1, round(share * len(where))), len(where) - start - left)
            parts[i].append(where[start : start + max(count, 0)])
            start += max(count, 0)
    return [data.subset(torch.cat(part).sort().values) for part in parts]
