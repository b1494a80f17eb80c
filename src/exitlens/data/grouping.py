"""Groups of samples that belong together (frames of one video, pictures of one patient): named, and never split apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError

_ATTEMPTS = 50


class Groups(NamedTuple):
    """``ids (N,)`` ``int64``, the place of each sample's group in the sorted ``names``."""

    ids: Tensor
    names: tuple[str, ...]


def number_groups(values: Sequence[str], names: Iterable[str] = ()) -> Groups:
    """Numbers the groups of N samples; give ``names`` of all parts of a source, so that all of them count alike."""
    known = tuple(sorted({*values, *names}))
    numbers = {name: i for i, name in enumerate(known)}
    return Groups(torch.tensor([numbers[value] for value in values], dtype=torch.int64), known)


def looks_like_pattern(word: str) -> bool:
    """Whether it has characters that regular expressions have and names of columns have not."""
    return any(sign in word for sign in "\\()[]*+?^$|{}")


def match_groups(pattern: str, names: Sequence[str]) -> list[str]:
    """The group of each file name: what the pattern's first parentheses match, or all that it matches without any.

    Args:
        pattern: a regular expression, found anywhere in the name.
        names: of files, with their class folder.

    Raises:
        InputError: no regular expression; DataError: names that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_by: {pattern!r} is no regular expression ({error})") from error
    found = [compiled.search(name) for name in names]
    values = [match and match[1 if compiled.groups else 0] for match in found]
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing:
        raise DataError(
            f"group_by: {pattern!r} finds no group in {len(missing)} of {len(names)} file names, such as {missing[0]!r}: "
            "it has to match in every one"
        )
    return [str(value) for value in values]


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


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """How many of ``count`` things each part gets: one at least, as long as they last; the last part gets the rest."""
    sizes: list[int] = []
    for i, share in enumerate(shares):
        left, rest = len(shares) - 1 - i, count - sum(sizes)
        sizes.append(rest if left == 0 else max(0, min(max(1, round(share * count)), rest - left)))
    return sizes


def assign_groups(
    labels: Tensor, groups: Tensor, classes: Sequence[str], shares: Sequence[float], rng: torch.Generator
) -> Tensor:
    """The part of each sample ``(N,)``, so that every group is in one part and every class in all.

    A part gets its share of the groups of every class, large and small ones alike. Every group has the same chance of every
    part whatever its size, as a certificate needs that tests on some groups and promises for others; the shares of
    *samples* are near to what was asked for, not always at it. (scikit-learn's ``StratifiedGroupKFold`` goes for the samples
    alone, and fills small parts with small groups.)

    Args:
        labels: ``(N,)`` integers.
        groups: ``(N,)`` integers.
        classes: their names, in label order.
        shares: of each part; they sum to 1.
        rng: the same state gives the same parts.

    Raises:
        DataError: a class whose groups are fewer than the parts, or lie so that some part gets none.
    """
    ids, of_sample = groups.unique(return_inverse=True)  # (G,), (N,)
    pairs, counts = torch.stack([of_sample, labels]).unique(dim=1, return_counts=True)  # (2,P): group, class; (P,)
    held = pairs[1].bincount(minlength=len(classes))  # (C,) groups of every class
    for label in ((held > 0) & (held < len(shares))).nonzero().flatten().tolist():
        raise DataError(
            f"data: class {classes[label]!r} has {int(held[label])} group(s), need {len(shares)} or more: one for each of "
            f"{len(shares)} splits"
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
        f"{int(held[int(lacking.nonzero()[0])])} groups; give smaller groups, or splits of your own"
    )


def _find_strata(pairs: Tensor, counts: Tensor, totals: Tensor, number: int) -> Tensor:
    """For each group ``(G,)`` the class of which it has the largest share, so that rare classes count."""
    share = counts / totals[pairs[1]]
    order = share.argsort(stable=True)  # of a group's pairs the largest comes last, and is what stays
    strata = torch.zeros(number, dtype=torch.int64)
    for group, label in pairs[:, order].T.tolist():
        strata[group] = label
    return strata


def _draw_parts(strata: Tensor, sizes: Tensor, shares: Sequence[float], rng: torch.Generator) -> Tensor:
    """A part for each group: in every stratum, each part's groups are spread evenly from the largest to the smallest.

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
