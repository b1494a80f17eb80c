"""Checks of labels and groups, and the errors about samples that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError, require, suggest
from exitlens.types.tasks import check_truth

SEPARATOR = ";"  # between the labels of one sample, in words
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def check_class_labels(labels: Tensor, count: int, classes: Sequence[str], kind: str) -> Tensor:
    """Return labels ``(N,)`` as ``int64``, or several labels a sample ``(N,C)`` of 0 and 1 as bool.

    Another type, shape or ``count`` of samples (of this ``kind``), and values that are no class, are an :class:`InputError`.
    """
    require(labels, Tensor, "labels")
    if labels.ndim == 2:
        if len(classes) < 2:
            raise InputError(f"classes: expected the names of 2 labels or more, got {tuple(classes)}")
        check_truth(labels, count, len(classes))
        return labels.bool()
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"labels: expected (N,) integers, got {tuple(labels.shape)} {labels.dtype}")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"labels: expected values in [0, {len(classes)}), the numbers of class names, got {low} to {high}")
    if len(labels) != count:
        raise InputError(f"labels: expected {count}, one per {kind}; got {len(labels)}")
    return labels.long()


def number_labels(
    values: Sequence[str], classes: Sequence[str], origin: str, several: bool = False
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels ``(N,)`` ``int64``, or for ``several`` a sample ``(N,C)`` bool, and the classes' names in label order.

    ``values`` are the class names of each sample, several with :data:`SEPARATOR` between them; ``classes`` the names to use,
    by default those that occur, sorted (numbers by their value).
    """
    sets = [[word for part in value.split(SEPARATOR) if (word := part.strip())] for value in values] if several else []
    words = dict.fromkeys(word for labels in sets for word in labels) if several else dict.fromkeys(values)
    names = tuple(classes) or sort_names(words)
    singular, plural = ("label", "label(s)") if several else ("class", "class(es)")
    if len(names) < 2:
        raise DataError(f"data: {origin} has {len(names)} {plural}, need 2 or more: its labels are {names}")
    numbers = {name: i for i, name in enumerate(names)}
    unknown = next((word for word in words if word not in numbers), None)
    if unknown is not None:
        raise DataError(f"data: {origin} has the {singular} {unknown!r}, the network does not.{suggest(unknown, names)}")
    if not several:
        return torch.tensor([numbers[value] for value in values], dtype=torch.int64), names
    labels = torch.zeros(len(sets), len(names), dtype=torch.bool)
    pairs = [(i, numbers[word]) for i, present in enumerate(sets) for word in present]
    if pairs:
        labels[tuple(torch.tensor(pairs).T)] = True
    return labels, names


def join_flags(columns: Mapping[str, Sequence[str | None]], names: Sequence[str]) -> list[str | None]:
    """Turn columns of 0 and 1, by label, into the labels of each row; ``None`` for a row that lacks a value."""
    for label in columns:
        if SEPARATOR in label:
            raise DataError(f"columns: the label {label!r} has a {SEPARATOR!r} in its name. Fix: rename the column")
    joined: list[str | None] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        flags = [None if value is None else FLAGS.get(value.strip().lower()) for value in row]
        for label, flag, value in zip(columns, flags, row, strict=True):
            if flag is None and value and value.strip():
                raise DataError(f"data: {names[i]}: expected 0 or 1 for the label {label!r}, got {value!r:.60}")
        present = [label for label, flag in zip(columns, flags, strict=True) if flag]
        joined.append(None if None in flags else SEPARATOR.join(present))
    return joined


def sort_names(values: Iterable[str]) -> tuple[str, ...]:
    """Sort the distinct values; whole numbers by their value, so that class 10 comes after class 9."""
    distinct = set(values)
    return tuple(sorted(distinct, key=int) if all(value.isdecimal() for value in distinct) else sorted(distinct))


def number_groups(values: Sequence[str], names: Sequence[str]) -> Tensor:  # -> (N,) int64
    """Return the place of each sample's group in the sorted ``names`` of all groups of a source."""
    numbers = {name: i for i, name in enumerate(names)}
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64)


def check_groups(groups: Tensor | None, count: int) -> Tensor | None:
    """Return group ids, if there are any, as ``(N,)`` ``int64``; raise :class:`InputError` for other types or shapes."""
    if groups is None:
        return None
    require(groups, Tensor, "groups")
    if groups.shape != (count,) or groups.is_floating_point():
        raise InputError(f"groups: expected ({count},) integers, one per sample; got {tuple(groups.shape)} {groups.dtype}")
    return groups.long()


def check_bad(bad: Sequence[str], total: int, skip_bad: bool, kind: str = "files") -> None:
    """Raise a :class:`DataError` that names unreadable files, unless they may be skipped and others remain."""
    if bad and (not skip_bad or len(bad) == total):
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        fix = "" if len(bad) == total else "; remove them, or pass --skip-bad (skip_bad=True) to leave them out"
        error = DataError(f"data: {len(bad)} of {total} {kind} cannot be read{fix}:\n  {shown}")
        error.is_skippable = bool(fix)
        raise error


def refuse_bad(reason: str, fix: str) -> DataError:
    """Return the error about a sample that cannot be read while others remain: ``fix`` it, or leave it out."""
    skip = "pass --skip-bad (skip_bad=True) to leave out files that cannot be read"
    error = DataError(f"data: {reason}. Fix: {fix}, or {skip}")
    error.is_skippable = True
    return error
