"""Splits of a data set: disjoint parts, each of which is used for one thing only; cut by us, or named by the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import fsum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError
from exitlens.modalities import Modality
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocessing

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")
SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}


class SampleSet(Protocol):
    """Labelled samples of one kind, in memory or on disk; item ``i`` is ``(inputs, label)`` without the batch axis."""

    masks: Tensor | None  # (N,*S) bool: which locations carry the answer
    labels: Tensor  # (N,) integers; several labels a sample (N,C) bool
    classes: tuple[str, ...]  # names, in label order
    groups: Tensor | None  # (N,) integers: samples with the same number belong together

    @property
    def modality(self) -> Modality:
        """What kind of samples they are."""

    @property
    def inputs(self) -> Inputs:
        """All samples as a network's inputs; of small subsets only, if they are not in memory."""

    @property
    def preprocess(self) -> Preprocessing:
        """How raw samples become inputs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Tensor]: ...

    def first(self, count: int) -> Self:
        """Return the first ``count`` samples (all, if there are fewer)."""

    def subset(self, indices: Tensor) -> Self:
        """Return the samples at ``indices`` (``(n,)`` integers) as a set of its own."""


_ATTEMPTS = 50  # to find parts that all have every class
_Set = TypeVar("_Set", bound="Any")  # with labels, classes, groups and subset


def check_split(split: str) -> None:
    """Raise :class:`InputError` for a word that is no split."""
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")


def split_set(data: _Set, shares: Sequence[float], seed: int = 0) -> list[_Set]:
    """Cut a set into disjoint random parts with these shares of every class; the last part gets what is left over.

    Every group of a set with ``groups`` goes into one part as a whole, see :func:`assign_groups`. If a sample has several
    labels, the rarest of them counts as its class, so that rare labels are spread over all parts.

    Raises:
        DataError: if a class has too few samples (groups) to give every part one.

    Examples:
        >>> train, test = xl.data.split_set(scenes, (0.75, 0.25))
        >>> len(train) + len(test), set(test.labels.tolist()) == set(range(10))  # every class in every part
        (64, True)
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise InputError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    rng = torch.Generator().manual_seed(seed)
    labels, classes = data.labels, data.classes
    if labels.ndim == 2:
        labels, classes = find_rarest(labels), (*classes, "none of the labels")
    if data.groups is not None and len(data.groups.unique()) < len(data.groups):
        parts = assign_groups(labels, data.groups, classes, shares, rng)  # (N,)
        return [data.subset((parts == i).nonzero().flatten()) for i in range(len(shares))]
    chosen: list[list[Tensor]] = [[] for _ in shares]
    for label in range(len(classes)):
        where = (labels == label).nonzero().flatten()
        if 0 < len(where) < len(shares) and data.labels.ndim == 1:
            raise DataError(f"data: class {classes[label]!r} has {len(where)} sample(s), need {len(shares)} or more")
        where = where[torch.randperm(len(where), generator=rng)]
        for part, rows in zip(chosen, where.split(share_out(len(where), shares)), strict=True):
            part.append(rows)
    return [data.subset(torch.cat(part).sort().values) for part in chosen]


def find_rarest(labels: Tensor) -> Tensor:  # (N,C) bool -> (N,)
    """Return of each sample's labels the one that the fewest samples have; C for a sample without any."""
    counts = torch.cat([labels.sum(0), torch.tensor([len(labels) + 1])])  # no label is as common as that
    padded = torch.cat([labels, torch.ones(len(labels), 1, dtype=torch.bool)], 1)
    return torch.where(padded, counts, len(labels) + 2).argmin(1)


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """Return how many of ``count`` things each part gets: at least one, as long as they last; the last gets the rest."""
    sizes: list[int] = []
    for i, share in enumerate(shares):
        left, rest = len(shares) - 1 - i, count - sum(sizes)
        sizes.append(rest if left == 0 else max(0, min(max(1, round(share * count)), rest - left)))
    return sizes


def assign_groups(
    labels: Tensor, groups: Tensor, classes: Sequence[str], shares: Sequence[float], rng: torch.Generator
) -> Tensor:
    """Return the part of each sample ``(N,)``, so that every group is in one part and every class in all.

    A part gets its share of the groups of every class, large and small ones alike. Every group has the same chance of every
    part whatever its size, as a certificate needs that tests on some groups and promises for others; so the shares of
    *samples* are only near what was asked for. (scikit-learn's ``StratifiedGroupKFold`` meets the shares of samples, and
    fills small parts with small groups.)

    ``labels`` and ``groups`` are ``(N,)`` integers, ``shares`` sum to 1. Raises :class:`DataError` for a class whose groups
    are fewer than the parts, or lie so that some part gets none.
    """
    ids, of_sample = groups.unique(return_inverse=True)  # (G,), (N,)
    pairs, counts = torch.stack([of_sample, labels]).unique(dim=1, return_counts=True)  # (2,P): group, class; (P,)
    held = pairs[1].bincount(minlength=len(classes))  # (C,) groups of every class
    for label in ((held > 0) & (held < len(shares))).nonzero().flatten().tolist():
        raise DataError(
            f"data: class {classes[label]!r} has {int(held[label])} group(s), need {len(shares)} or more, one for each split"
        )
    strata = _find_strata(pairs, counts, labels.bincount(minlength=len(classes)), len(ids))
    sizes = of_sample.bincount(minlength=len(ids))
    for _ in range(_ATTEMPTS):
        parts = _draw_parts(strata, sizes, shares, rng)  # (G,)
        covered = torch.stack([pairs[1] * len(shares) + parts[pairs[0]]]).unique().div(len(shares), rounding_mode="floor")
        lacking = (held > 0) & (covered.bincount(minlength=len(classes)) < len(shares))
        if not lacking.any():
            return parts[of_sample]
    name = classes[int(lacking.nonzero()[0])]
    raise DataError(
        f"data: the groups of class {name!r} cannot be split so that each of {len(shares)} parts has one: it has "
        f"{int(held[int(lacking.nonzero()[0])])} groups. Fix: give smaller groups, or splits of your own"
    )


def _find_strata(pairs: Tensor, counts: Tensor, totals: Tensor, number: int) -> Tensor:
    """Return for each group ``(G,)`` the class of which it has the largest share, so that rare classes count."""
    share = counts / totals[pairs[1]]
    order = share.argsort(stable=True)  # of a group's pairs the largest comes last, and is what stays
    strata = torch.zeros(number, dtype=torch.int64)
    for group, label in pairs[:, order].T.tolist():
        strata[group] = label
    return strata


def _draw_parts(strata: Tensor, sizes: Tensor, shares: Sequence[float], rng: torch.Generator) -> Tensor:
    """Return a part for each group; in every stratum, each part's groups are spread evenly from large to small.

    Turning the row of parts by a random number of places makes the chances of all groups exactly equal.
    """
    parts = torch.empty_like(strata)
    for stratum in strata.unique():
        where = (strata == stratum).nonzero().flatten()
        where = where[torch.randperm(len(where), generator=rng)]
        where = where[sizes[where].argsort(descending=True, stable=True)]
        if len(where) < len(shares):  # other strata have groups of this class, too
            parts[where] = torch.multinomial(torch.tensor(shares), len(where), generator=rng)
            continue
        counts = share_out(len(where), shares)
        at = [(torch.arange(n) + torch.rand(n, generator=rng)) / max(n, 1) for n in counts]  # in [0, 1): from large to small
        row = torch.arange(len(shares)).repeat_interleave(torch.tensor(counts))[torch.cat(at).argsort()]
        parts[where] = row.roll(int(torch.randint(len(row), (1,), generator=rng)))
    return parts


_WORDS: dict[str, Split] = {  # what others call the splits
    **{split: split for split in SPLITS},
    **dict.fromkeys(("training",), SPLITS[0]),
    **dict.fromkeys(("val", "valid", "dev", "eval"), SPLITS[1]),
    **dict.fromkeys(("calib",), SPLITS[2]),
    **dict.fromkeys(("testing",), SPLITS[3]),
}


class SplitPlan(NamedTuple):
    """Where splits come from: parts of the source (``own``), cut from ``train`` (``carved``); and ``unused`` parts."""

    own: Mapping[Split, str]
    carved: tuple[Split, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        words = [f"{split}: all of {name!r}" for split, name in self.own.items() if split != "train" or not self.carved]
        if self.carved:
            cut = ", ".join(f"{share:.0%} {split}" for split, share in self.shares().items())
            words.append(
                f"cut from {self.own['train']!r} by exitlens: {cut}" if self.own["train"] else f"by exitlens: {cut}"
            )
        return "; ".join([*words, *(f"{name!r} is not used" for name in self.unused)])

    def shares(self) -> dict[Split, float]:
        """Return which shares of the part for ``train`` it keeps and the carved splits get; they sum to 1."""
        parts: tuple[Split, ...] = ("train", *self.carved)
        total = fsum(SHARES[part] for part in parts)
        return {part: SHARES[part] / total for part in parts}


def name_split(word: str) -> Split | None:
    """Return the split that a word such as ``val`` stands for, if any."""
    return _WORDS.get(word.strip().lower())


def find_split_tables(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files ``train.csv``, ``test.csv`` and so on of a folder by name; none if no file is for training."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and name_split(path.stem))
    tables = {path.stem: path for path in files}
    if len(tables) < len(files):
        raise DataError(
            f"data: {folder} has two files of one name among {[path.name for path in files]}. Fix: remove one of them"
        )
    return tables if any(name_split(word) == "train" for word in tables) else {}


def plan_splits(names: Sequence[str], origin: str) -> SplitPlan:
    """Find which of a source's named parts are our splits; a single part is cut into all four, whatever its name."""
    if len(names) == 1:
        return SplitPlan({"train": names[0]}, SPLITS[1:], ())
    own: dict[Split, str] = {}
    for name in names:
        split = name_split(name)
        if split in own:
            raise DataError(
                f"data: {origin} has {own[split]!r} and {name!r} for one split, {split}. Fix: rename one of them"
            )
        if split is not None:
            own[split] = name
    if "train" not in own:
        raise DataError(f"data: {origin} has the splits {', '.join(map(repr, names))}: one of them has to be called train")
    own = {split: own[split] for split in SPLITS if split in own}
    carved = tuple(split for split in SPLITS if split not in own)
    return SplitPlan(own, carved, tuple(name for name in names if name not in own.values()))


def take_split(parts: Mapping[str, _Set], split: Split, seed: int, origin: str, group_names: Sequence[str] = ()) -> _Set:
    """Return one split of a source that comes in named parts; a split without a part is cut from ``train``."""
    plan = plan_splits(tuple(parts), origin)
    used = {name: parts[name] for name in plan.own.values()}
    for name, part in used.items():
        if not len(part.labels):
            raise DataError(f"data: {origin}: its part {name!r} is empty. Fix: remove it, and it is cut from train")
    check_disjoint({name: part.groups for name, part in used.items() if part.groups is not None}, group_names, origin)
    if split in plan.own and (split != "train" or not plan.carved):
        return used[plan.own[split]]
    shares = plan.shares()
    return split_set(used[plan.own["train"]], list(shares.values()), seed)[list(shares).index(split)]


def check_disjoint(parts: Mapping[str, Tensor], names: Sequence[str], origin: str) -> None:
    """Raise :class:`DataError` if two parts, of which these are the group ids ``(N,)``, share a group; ``names`` by id."""
    distinct = {part: set(ids.tolist()) for part, ids in parts.items()}
    for (first, groups), (second, others) in combinations(distinct.items(), 2):
        if both := sorted(groups & others):
            shown = names[both[0]] if names else both[0]
            raise DataError(
                f"data: {origin} has the group {shown!r} in {first} and in {second} ({len(both)} group(s) are in both): "
                "what is measured on one would not hold for new groups. Fix: move each group to one part, or let us split"
            )
