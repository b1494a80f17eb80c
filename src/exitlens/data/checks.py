"""What can be wrong with data: labels that name no class, files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError, require, suggest
from exitlens.types.tasks import check_truth

SEPARATOR = ";"  # between the labels of one sample, in words
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def check_class_labels(labels: Tensor, count: int, classes: Sequence[str], kind: str) -> Tensor:
    """The labels as ``(N,)`` ``int64``, or, of several labels a sample, as ``(N,C)`` bool.

    Args:
        labels: ``(N,)`` integers, or ``(N,C)`` of 0 and 1 (integers or bool).
        count: N.
        classes: their names, in label order.
        kind: name of one sample, for the message.

    Raises:
        InputError: for another type, shape or number, or for values that are no class.
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


def number_labels(values: Sequence[str], classes: Sequence[str], origin: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels ``(N,)`` ``int64`` and class names, in label order.

    Args:
        values: the class name of each sample.
        classes: the names to use; by default those that occur, sorted (numbers by their value).
        origin: where they come from, for errors.

    Raises:
        DataError: fewer than 2 classes, or one that is not among ``classes``.
    """
    names = tuple(classes) or sort_names(values)
    if len(names) < 2:
        raise DataError(f"data: {origin} has {len(names)} class(es), need 2 or more: its labels are {names}")
    numbers = {name: i for i, name in enumerate(names)}
    unknown = next((value for value in values if value not in numbers), None)
    if unknown is not None:
        raise DataError(f"data: {origin} has the class {unknown!r}, the network has not.{suggest(unknown, names)}")
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64), names


def number_label_sets(values: Sequence[str], classes: Sequence[str], origin: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels ``(N,C)`` bool and their names, in label order.

    Args:
        values: the labels of each sample, with :data:`SEPARATOR` between them; empty for a sample without any.
        classes: the names to use; by default those that occur, sorted (numbers by their value).
        origin: where they come from, for errors.

    Raises:
        DataError: fewer than 2 labels, or one that is not among ``classes``.
    """
    sets = [[word for part in value.split(SEPARATOR) if (word := part.strip())] for value in values]
    words = list(dict.fromkeys(word for found in sets for word in found))
    names = tuple(classes) or sort_names(words)
    if len(names) < 2:
        raise DataError(f"data: {origin} has {len(names)} label(s), need 2 or more: its labels are {names}")
    numbers = {name: i for i, name in enumerate(names)}
    unknown = next((word for word in words if word not in numbers), None)
    if unknown is not None:
        raise DataError(f"data: {origin} has the label {unknown!r}, the network has not.{suggest(unknown, names)}")
    labels = torch.zeros(len(sets), len(names), dtype=torch.bool)
    pairs = [(i, numbers[word]) for i, found in enumerate(sets) for word in found]
    if pairs:
        labels[tuple(torch.tensor(pairs).T)] = True
    return labels, names


def join_flags(columns: Mapping[str, Sequence[str | None]], name: Callable[[int], str]) -> list[str | None]:
    """From columns of 0 and 1, one for each label, to the labels of each row; ``None`` where a row lacks a value.

    Args:
        columns: by label, words of N rows.
        name: what errors call row ``i``.

    Raises:
        DataError: for a value that is neither 0 nor 1.
    """
    for label in columns:
        if SEPARATOR in label:
            raise DataError(f"columns: the label {label!r} has a {SEPARATOR!r} in its name: rename the column")
    found: list[str | None] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        flags = [None if value is None else FLAGS.get(value.strip().lower()) for value in row]
        odd = next((j for j, flag in enumerate(flags) if flag is None and row[j] and str(row[j]).strip()), None)
        if odd is not None:
            label = list(columns)[odd]
            raise DataError(f"data: {name(i)}: expected 0 or 1 for the label {label!r}, got {row[odd]!r:.60}")
        there = [label for label, flag in zip(columns, flags, strict=True) if flag]
        found.append(None if None in flags else SEPARATOR.join(there))
    return found


def sort_names(values: Sequence[str]) -> tuple[str, ...]:
    """The distinct values, sorted; whole numbers by their value, so that class 10 comes after class 9."""
    found = set(values)
    return tuple(sorted(found, key=int) if all(value.isdecimal() for value in found) else sorted(found))


def check_groups(groups: Tensor | None, count: int) -> Tensor | None:
    """Group ids as ``(N,)`` ``int64``, if there are any; raises :class:`InputError` for another type, shape or number."""
    if groups is None:
        return None
    require(groups, Tensor, "groups")
    if groups.shape != (count,) or groups.is_floating_point():
        raise InputError(f"groups: expected ({count},) integers, one per sample; got {tuple(groups.shape)} {groups.dtype}")
    return groups.long()


def check_bad(bad: Sequence[str], total: int, skip_bad: bool, kind: str = "files") -> None:
    """Raises :class:`DataError` naming the unreadable files, unless they may be skipped and others remain."""
    if bad and (not skip_bad or len(bad) == total):
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        mend = "" if len(bad) == total else "; remove them, or pass --skip-bad (skip_bad=True) to leave them out"
        error = DataError(f"data: {len(bad)} of {total} {kind} cannot be read{mend}:\n  {shown}")
        error.is_skippable = bool(mend)
        raise error


def refuse_bad(reason: str, mend: str) -> DataError:
    """The error about a sample that cannot be read, where others remain: ``mend`` it, or leave it out."""
    error = DataError(f"data: {reason}: {mend}, or pass --skip-bad (skip_bad=True) to leave out files that cannot be read")
    error.is_skippable = True
    return error
