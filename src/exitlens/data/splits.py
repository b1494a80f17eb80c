"""Splits of a data set: disjoint parts, each with one use; cut by us, or named by the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import fsum
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from exitlens.data.sets import SampleSet
from exitlens.errors import DataError, InputError
from exitlens.types.tasks import BY_LABELS

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")
SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
_WORDS: dict[str, Split] = {  # other names of the splits
    **{split: split for split in SPLITS},
    "training": "train",
    **dict.fromkeys(("val", "valid", "dev", "eval"), SPLITS[1]),
    "calib": "calibration",
    "testing": "test",
}
_ATTEMPTS = 50  # attempts to find parts that all have every class
_Set = TypeVar("_Set", bound=SampleSet)


def check_split(split: str) -> None:
    """Raise :class:`InputError` for a word that names no split."""
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")


def split_set(data: _Set, shares: Sequence[float], seed: int = 0) -> list[_Set]:
    """Cut a set into disjoint random parts with these shares of every class; the last part gets the remainder.

    Every group of a set with ``groups`` goes into one part as a whole. If a sample has several labels, the rarest of them
    counts as its class, so that rare labels are spread over all parts. A class with too few samples (groups) to give every
    part one is a :class:`~exitlens.errors.DataError`. With a class for each pixel, numbers or no labels all samples are
    alike.

    Examples:
        >>> train, test = xl.data.split_set(scenes, (0.75, 0.25))
        >>> len(train) + len(test), set(test.labels.tolist()) == set(range(10))  # every class in every part
        (64, True)
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise InputError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    rng = torch.Generator().manual_seed(seed)
    labels, classes = data.labels, data.classes
    if data.task == "multilabel":
        labels, classes = find_rarest(labels), (*classes, "none of the labels")
    if data.task not in BY_LABELS:
        labels, classes = torch.zeros(len(labels), dtype=torch.int64), ("any",)
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
    """Return the rarest label of each sample; C for a sample without labels."""
    counts = torch.cat([labels.sum(0), torch.tensor([len(labels) + 1])])  # more than any label has
    padded = torch.cat([labels, torch.ones(len(labels), 1, dtype=torch.bool)], 1)
    return torch.where(padded, counts, len(labels) + 2).argmin(1)


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """Divide ``count`` things into parts: at least one for each, as long as they last; the last part gets the rest."""
    sizes: list[int] = []
    for i, share in enumerate(shares):
        left, rest = len(shares) - 1 - i, count - sum(sizes)
        sizes.append(rest if left == 0 else max(0, min(max(1, round(share * count)), rest - left)))
    return sizes


def assign_groups(
    labels: Tensor, groups: Tensor, classes: Sequence[str], shares: Sequence[float], rng: torch.Generator
) -> Tensor:
    """Return the part of each sample ``(N,)``, so that every group is in one part and every class in all parts.

    Every group has the same chance of every part whatever its size, because a certificate tests on some groups and makes
    promises for others; so the shares of *samples* are only near ``shares``. (scikit-learn's ``StratifiedGroupKFold`` meets
    them, and fills small parts with small groups.) ``labels`` and ``groups`` are ``(N,)`` integers.
    """
    ids, of_sample = groups.unique(return_inverse=True)  # (G,), (N,)
    pairs, counts = torch.stack([of_sample, labels]).unique(dim=1, return_counts=True)  # (2,P): group, class; (P,)
    held = pairs[1].bincount(minlength=len(classes))  # (C,) groups of every class
    for label in ((held > 0) & (held < len(shares))).nonzero().flatten().tolist():
        needed = f"need {len(shares)} or more, one for each split"
        raise DataError(f"data: class {classes[label]!r} has {int(held[label])} group(s), {needed}")
    order = (counts / labels.bincount(minlength=len(classes))[pairs[1]]).argsort(stable=True)  # a group's largest comes last
    strata = torch.zeros(len(ids), dtype=torch.int64)  # (G,) the class of which a group has the largest share
    for group, label in pairs[:, order].T.tolist():
        strata[group] = label
    sizes = of_sample.bincount(minlength=len(ids))
    for _ in range(_ATTEMPTS):
        parts = _draw_parts(strata, sizes, shares, rng)  # (G,)
        covered = torch.stack([pairs[1] * len(shares) + parts[pairs[0]]]).unique().div(len(shares), rounding_mode="floor")
        lacking = (held > 0) & (covered.bincount(minlength=len(classes)) < len(shares))
        if not lacking.any():
            return parts[of_sample]
    label = int(lacking.nonzero()[0])
    problem = f"cannot be split so that each of {len(shares)} parts has one: it has {int(held[label])} groups"
    raise DataError(f"data: the groups of class {classes[label]!r} {problem}. Fix: give smaller groups, or your own splits")


def _draw_parts(strata: Tensor, sizes: Tensor, shares: Sequence[float], rng: torch.Generator) -> Tensor:
    """Return a part for each group; in every stratum, each part's groups are spread evenly from large to small."""
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
        parts[where] = row.roll(int(torch.randint(len(row), (1,), generator=rng)))  # makes the chances of all groups equal
    return parts


class SplitPlan(NamedTuple):
    """The origin of splits."""

    parts: Mapping[Split, str]  # names of the source's own parts
    carved: tuple[Split, ...]  # cut from train
    unused: tuple[str, ...]  # parts that are no split

    def __str__(self) -> str:
        words = [f"{split}: all of {name!r}" for split, name in self.parts.items() if split != "train" or not self.carved]
        if self.carved:
            cut = f"by exitlens: {', '.join(f'{share:.0%} {split}' for split, share in self.shares().items())}"
            words.append(f"cut from {self.parts['train']!r} {cut}" if self.parts["train"] else cut)
        return "; ".join([*words, *(f"{name!r} is not used" for name in self.unused)])

    def shares(self) -> dict[Split, float]:
        """Return how the part for ``train`` is shared by it and the carved splits; the shares sum to 1."""
        shares = {name: SHARES[name] for name in SPLITS if name in ("train", *self.carved)}
        return {name: share / fsum(shares.values()) for name, share in shares.items()}


def name_split(word: str) -> Split | None:
    """Return the split that a word such as ``val`` stands for, if any."""
    return _WORDS.get(word.strip().lower())


def find_split_tables(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files ``train.csv``, ``test.csv`` and so on of a folder by name; none if no file is for training."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and name_split(path.stem))
    tables = {path.stem: path for path in files}
    if len(tables) < len(files):
        names = [path.name for path in files]
        raise DataError(f"data: {folder} has two files of one name among {names}. Fix: remove one of them")
    return tables if any(name_split(word) == "train" for word in tables) else {}


def plan_splits(names: Sequence[str], origin: str) -> SplitPlan:
    """Match a source's named parts with our splits; a single part is cut into all four, whatever its name."""
    if len(names) == 1:
        return SplitPlan({"train": names[0]}, SPLITS[1:], ())
    parts: dict[Split, str] = {}
    for name in names:
        split = name_split(name)
        if split in parts:
            both = f"{parts[split]!r} and {name!r} for one split, {split}"
            raise DataError(f"data: {origin} has {both}. Fix: rename one of them")
        if split is not None:
            parts[split] = name
    if "train" not in parts:
        raise DataError(f"data: {origin} has the splits {', '.join(map(repr, names))}: one of them has to be called train")
    carved = tuple(split for split in SPLITS if split not in parts)
    unused = tuple(name for name in names if name not in parts.values())
    return SplitPlan({split: parts[split] for split in SPLITS if split in parts}, carved, unused)


def take_split(parts: Mapping[str, _Set], split: Split, seed: int, origin: str, group_names: Sequence[str] = ()) -> _Set:
    """Return one split of a source that comes in named parts; a split without a part is cut from ``train``."""
    plan = plan_splits(tuple(parts), origin)
    used = {name: parts[name] for name in plan.parts.values()}
    for name, part in used.items():
        if not len(part.labels):
            raise DataError(f"data: {origin}: its part {name!r} is empty. Fix: remove it, and it is cut from train")
    check_disjoint({name: part.groups for name, part in used.items() if part.groups is not None}, group_names, origin)
    if split in plan.parts and (split != "train" or not plan.carved):
        return used[plan.parts[split]]
    shares = plan.shares()
    return split_set(used[plan.parts["train"]], list(shares.values()), seed)[list(shares).index(split)]


def check_disjoint(parts: Mapping[str, Tensor], names: Sequence[str], origin: str) -> None:
    """Raise :class:`DataError` if two of the ``parts``, given by their group ids ``(N,)``, share a group."""
    distinct = {part: set(ids.tolist()) for part, ids in parts.items()}
    for (first, groups), (second, others) in combinations(distinct.items(), 2):
        if both := sorted(groups & others):
            shown = names[both[0]] if names else both[0]
            problem = f"the group {shown!r} in {first} and in {second} ({len(both)} group(s) are in both)"
            effect = "figures measured on one would not hold for new groups"
            raise DataError(f"data: {origin} has {problem}: {effect}. Fix: move each group to one part, or let us split")
