"""Splits of a data set: disjoint parts, each of which is used for one thing only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from exitlens.data.grouping import assign_groups, check_disjoint, share_out
from exitlens.errors import DataError, InputError
from exitlens.modalities import Modality
from exitlens.types import Preprocessing
from exitlens.types.inputs import Inputs

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")
SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
_WORDS: dict[str, Split] = {  # what others call the splits
    **{split: split for split in SPLITS},
    **dict.fromkeys(("training",), SPLITS[0]),
    **dict.fromkeys(("val", "valid", "dev", "eval"), SPLITS[1]),
    **dict.fromkeys(("calib",), SPLITS[2]),
    **dict.fromkeys(("testing",), SPLITS[3]),
}


class Splittable(Protocol):
    """What :func:`split_set` needs of a data set."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` integers."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""

    @property
    def groups(self) -> Tensor | None:
        """``(N,)`` integers, if there are any: samples with the same number belong together."""

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

    Where the set has ``groups``, every group goes into one part as a whole, see
    :func:`~exitlens.data.grouping.assign_groups`.

    Raises:
        DataError: if a class has too few samples (groups) to give every part one.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise InputError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    rng = torch.Generator().manual_seed(seed)
    if data.groups is not None and len(data.groups.unique()) < len(data.groups):
        parts = assign_groups(data.labels, data.groups, data.classes, shares, rng)  # (N,)
        return [data.subset((parts == i).nonzero().flatten()) for i in range(len(shares))]
    chosen: list[list[Tensor]] = [[] for _ in shares]
    for label in range(len(data.classes)):
        where = (data.labels == label).nonzero().flatten()
        if 0 < len(where) < len(shares):
            raise DataError(f"data: class {data.classes[label]!r} has {len(where)} sample(s), need {len(shares)} or more")
        where = where[torch.randperm(len(where), generator=rng)]
        for part, found in zip(chosen, where.split(share_out(len(where), shares)), strict=True):
            part.append(found)
    return [data.subset(torch.cat(part).sort().values) for part in chosen]


class SplitPlan(NamedTuple):
    """Where the four splits of a source come from.

    Attributes:
        own: the part of the source that is a split, by split.
        carved: splits that are cut from the part for ``train``.
        unused: parts whose names are no split's.
    """

    own: Mapping[Split, str]
    carved: tuple[Split, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        words = [f"{split}: all of {name!r}" for split, name in self.own.items() if split != "train" or not self.carved]
        if self.carved:
            cut = ", ".join(f"{share:.0%} {split}" for split, share in self.shares().items())
            words.append(f"cut from {self.own['train']!r} by us: {cut}" if self.own["train"] else f"by us: {cut}")
        return "; ".join([*words, *(f"{name!r} is not used" for name in self.unused)])

    def shares(self) -> dict[Split, float]:
        """Of the part for ``train``, what it keeps and what the carved splits get; they sum to 1."""
        parts: tuple[Split, ...] = ("train", *self.carved)
        total = fsum(SHARES[part] for part in parts)
        return {part: SHARES[part] / total for part in parts}


def name_split(word: str) -> Split | None:
    """The split that a word such as ``val`` stands for, if any."""
    return _WORDS.get(word.strip().lower())


def plan_splits(names: Sequence[str], origin: str) -> SplitPlan:
    """Which of a source's named parts are our splits; a single part is cut into all four, whatever its name.

    Raises:
        DataError: two parts for one split, or several of which none is for training.
    """
    if len(names) == 1:
        return SplitPlan({"train": names[0]}, SPLITS[1:], ())
    own: dict[Split, str] = {}
    for name in names:
        split = name_split(name)
        if split in own:
            raise DataError(f"data: {origin} has {own[split]!r} and {name!r} for one split, {split}: rename one of them")
        if split is not None:
            own[split] = name
    if "train" not in own:
        raise DataError(f"data: {origin} has the splits {', '.join(map(repr, names))}: one of them has to be called train")
    own = {split: own[split] for split in SPLITS if split in own}
    carved = tuple(split for split in SPLITS if split not in own)
    return SplitPlan(own, carved, tuple(name for name in names if name not in own.values()))


def take_split(parts: Mapping[str, _Set], split: Split, seed: int, origin: str, group_names: Sequence[str] = ()) -> _Set:
    """One split of a source that comes in named parts; what it has no part for is cut from ``train``.

    Raises:
        DataError: as :func:`plan_splits` and :func:`split_set`; an empty part; a group in two parts.
    """
    plan = plan_splits(tuple(parts), origin)
    used = {name: parts[name] for name in plan.own.values()}
    for name, part in used.items():
        if not len(part.labels):
            raise DataError(f"data: {origin}: its part {name!r} is empty: remove it, and it is cut from train")
    check_disjoint({name: part.groups for name, part in used.items() if part.groups is not None}, group_names, origin)
    if split in plan.own and (split != "train" or not plan.carved):
        return used[plan.own[split]]
    shares = plan.shares()
    return split_set(used[plan.own["train"]], list(shares.values()), seed)[list(shares).index(split)]
