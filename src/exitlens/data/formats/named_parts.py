"""Sources that come in named parts: which of them are our splits, and what is cut from the one for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import fsum
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from exitlens.data.splits import SHARES, SPLITS, Split, Splittable, split_set
from exitlens.errors import DataError

_Set = TypeVar("_Set", bound=Splittable)
_WORDS: dict[str, Split] = {  # what others call the splits
    **{split: split for split in SPLITS},
    **dict.fromkeys(("training",), SPLITS[0]),
    **dict.fromkeys(("val", "valid", "dev", "eval"), SPLITS[1]),
    **dict.fromkeys(("calib",), SPLITS[2]),
    **dict.fromkeys(("testing",), SPLITS[3]),
}


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
            words.append(
                f"cut from {self.own['train']!r} by exitlens: {cut}" if self.own["train"] else f"by exitlens: {cut}"
            )
        return "; ".join([*words, *(f"{name!r} is not used" for name in self.unused)])

    def shares(self) -> dict[Split, float]:
        """Of the part for ``train``, what it keeps and what the carved splits get; they sum to 1."""
        parts: tuple[Split, ...] = ("train", *self.carved)
        total = fsum(SHARES[part] for part in parts)
        return {part: SHARES[part] / total for part in parts}


def name_split(word: str) -> Split | None:
    """The split that a word such as ``val`` stands for, if any."""
    return _WORDS.get(word.strip().lower())


def find_split_tables(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files ``train.csv``, ``test.csv`` and so on of a folder, by their names; none where no file is for training.

    Raises:
        DataError: two files of one name that differ in their suffix only.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and name_split(path.stem))
    found = {path.stem: path for path in files}
    if len(found) < len(files):
        raise DataError(
            f"data: {folder} has two files of one name among {[path.name for path in files]}: remove one of them"
        )
    return found if any(name_split(word) == "train" for word in found) else {}


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


def check_disjoint(parts: Mapping[str, Tensor], names: Sequence[str], origin: str) -> None:
    """Raises :class:`DataError` if two parts of a source share a group.

    Args:
        parts: the group ids ``(N,)`` of every part.
        names: of the groups, by id.
        origin: the source's name.
    """
    found = {part: set(ids.tolist()) for part, ids in parts.items()}
    for (first, one), (second, other) in combinations(found.items(), 2):
        if both := sorted(one & other):
            shown = names[both[0]] if names else both[0]
            raise DataError(
                f"data: {origin} has the group {shown!r} in {first} and in {second} ({len(both)} group(s) are in both): "
                "what is measured on one would not hold for new groups; move each group to one part, or let us split them"
            )
