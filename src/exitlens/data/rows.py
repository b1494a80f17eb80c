"""Rows: the form in which every format gives its samples, with or without labels, before they become sets or streams."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from torch import Tensor

from exitlens.data.checks import check_bad, join_flags
from exitlens.data.columns import Columns, Kind, Role, find_columns, find_inputs
from exitlens.data.readers import EncodedImages
from exitlens.errors import DataError, InputError, suggest
from exitlens.types.preprocessing import Preprocess


class Reading(NamedTuple):
    """A user's choices for reading a source; an empty word leaves the choice to us."""

    columns: str = ""  # which columns to read, see :func:`~exitlens.data.columns.parse_columns`
    group_by: str = ""  # a column, or a regular expression on file names; samples that agree in it belong together
    split_by: str = ""  # a column that names the split of each sample
    task: str = ""  # ``multilabel``: the labels of a sample have ``;`` between them; ``classes``: a sample has one class


class Rows(NamedTuple):
    """N samples of one kind, from one part of a source; ``None`` stands for a value that is missing."""

    names: Sequence[str]  # of the rows, the same in every run
    images: Callable[[Preprocess], EncodedImages] | None = None  # makes a reader of the images, or
    texts: Sequence[str | None] | None = None  # perhaps read when they are asked for, or
    series: Sequence[Tensor | None] | None = None  # (C,T) each, or
    arrays: Tensor | None = None  # (N,*S) float32; rows with a fault hold any values
    features: tuple[str, ...] = ()  # names, if ``arrays`` are vectors
    labels: Sequence[str | None] | None = None  # class names; several have ``;`` between them
    keys: Sequence[str | None] | None = None
    groups: Sequence[str | None] | None = None
    splits: Sequence[str | None] | None = None
    faults: Mapping[int, str] = {}  # what is wrong with samples, by row
    damage: tuple[str, ...] = ()  # what is wrong with files whose samples are missing here
    classes: tuple[str, ...] = ()  # that the source knows, in label order
    several: bool = False  # a sample has any number of labels


def label_rows(
    names: Sequence[str], columns: Columns, words: Mapping[str, Sequence[str | None]], paths: Callable[[], Sequence[str]]
) -> Rows:
    """Return rows without contents: labels, keys, groups and splits from the columns in ``words``.

    Several label columns hold 0 and 1; ``paths`` gives what a regular expression for groups is matched with.
    """
    labels = columns.labels
    flags = {label: words[label] for label in labels} if len(labels) > 1 else {}
    return Rows(
        names,
        labels=join_flags(flags, names) if flags else words.get("".join(labels)),
        keys=words.get(columns.key),
        groups=match_groups(columns.pattern, paths()) if columns.pattern else words.get(columns.group),
        splits=words.get(columns.split),
        classes=tuple(flags),
        several=bool(flags),
    )


class Source(ABC):
    """A table, a file or shards, each row of which is a sample; ``kinds`` says what each column holds."""

    def __init__(self, name: str, kinds: Mapping[str, Kind]) -> None:
        self.name, self.kinds = name, dict(kinds)

    def find_columns(self, reading: Reading, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Choose the columns of samples and labels; or, without labels, of the samples that a network takes (``wanted``)."""
        group, split, pattern = reading.group_by, reading.split_by, ""
        if looks_like_pattern(group) and group not in self.kinds:
            group, pattern = "", group
        for column, argument in ((split, "split_by"), (group, "group_by")):
            if column and column not in self.kinds:
                known = f"it has {', '.join(self.kinds)}.{suggest(column, self.kinds)}"
                raise DataError(f"{argument}: {self.name} has no column {column!r}; {known}")
        if wanted is None:
            columns = self.guess_columns(reading.columns, (group, split))
        else:
            columns = find_inputs(self.kinds, reading.columns, self.name, wanted, features, (group, split))
        return columns._replace(group=group, split=split, pattern=pattern)

    def guess_columns(self, given: str, reserved: Sequence[str]) -> Columns:
        """Choose the columns of samples and labels; see :func:`~exitlens.data.columns.find_columns`."""
        return find_columns(self.kinds, given, self.name, reserved)

    @abstractmethod
    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Return the rows of every part by its name, or of all parts as one (``joined``) by the name ``""``.

        ``skip_bad`` takes the samples of damaged files that are whole.
        """


def check_rows(
    parts: Mapping[str, Rows], skip_bad: bool, several: bool = False
) -> tuple[dict[str, Sequence[int]], list[str]]:
    """Return the complete rows of each part, and what is wrong with the others.

    Raises:
        DataError: rows without a label, group, split, key or text, or with a fault, unless they may be skipped.
    """
    good: dict[str, Sequence[int]] = {}
    bad: list[str] = []
    for part, rows in parts.items():
        faults = dict(rows.faults)
        needed = {"label": rows.labels, "group": rows.groups, "split": rows.splits, "key": rows.keys, "text": rows.texts}
        for what, values in needed.items():
            for i in find_missing(() if values is None else values, what == "label" and several):
                faults.setdefault(i, f"no {what}")
        good[part] = [i for i in range(len(rows.names)) if i not in faults] if faults else range(len(rows.names))
        bad += [f"{rows.names[i]}: {faults[i]}" for i in sorted(faults)]
    check_bad(bad, sum(len(rows.names) for rows in parts.values()), skip_bad, "rows")
    return good, bad


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Put the rows of several parts, which are in memory, one after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = [0, *accumulate(len(rows.names) for rows in parts)]
    faults = {start + i: fault for start, rows in zip(starts, parts, strict=False) for i, fault in rows.faults.items()}

    def join(column: str) -> list[Any] | None:
        return list(chain(*(getattr(rows, column) for rows in parts))) if getattr(parts[0], column) is not None else None

    columns = {column: join(column) for column in ("texts", "series", "keys", "groups")}
    return Rows(join("names") or [], **columns, faults=faults)  # type: ignore[arg-type]


def find_missing(values: Iterable[str | None], may_be_empty: bool = False) -> list[int]:
    """Return where a value is missing, or empty unless it ``may_be_empty``."""
    return [i for i, value in enumerate(values) if value is None or not (may_be_empty or value.strip())]


def looks_like_pattern(word: str) -> bool:
    """Return whether a word has characters of regular expressions, which names of columns do not have."""
    return any(sign in word for sign in "\\()[]*+?^$|{}")


def match_groups(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the group of each file name: what the pattern's first parentheses match, or the whole pattern without any."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_by: expected a column or a regular expression, got {pattern!r} ({error})") from error
    matches = [compiled.search(name) for name in names]
    groups = [(match and match[1 if compiled.groups else 0]) or "" for match in matches]
    if missing := [name for name, group in zip(names, groups, strict=True) if not group]:
        where = f"{len(missing)} of {len(names)} file names, such as {missing[0]!r}"
        raise DataError(f"group_by: {pattern!r} finds no group in {where}. Fix: give a pattern that matches every name")
    return groups
