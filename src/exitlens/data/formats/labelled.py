"""From what a format finds (labels, groups and contents by row) to sets that can be split and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.data.arrays.sets import Arrays, ArraySet
from exitlens.data.checks import check_bad, number_label_sets, number_labels
from exitlens.data.formats.groups import number_groups
from exitlens.data.formats.named_parts import name_split
from exitlens.data.lazy import LazyImages
from exitlens.data.loading.packed import PackedStrings
from exitlens.data.loading.readers import Reader
from exitlens.data.texts import RawTexts
from exitlens.errors import DataError
from exitlens.types import ArrayPreprocess, Preprocess


class Rows(NamedTuple):
    """N samples of one part of a source; ``None`` stands for a value that is missing.

    Attributes:
        name: what errors call row ``i``.
        labels: class names; where a sample may have several, with ``;`` between them, and empty for none.
        images: gives a reader of the images, or
        texts: the texts, or
        arrays: ``(N,*S)`` ``float32`` series or vectors, anything in rows with a fault.
        faults: what is wrong with the sample of every row, empty where nothing is; none: nothing is with any.
        groups: names of the groups, if there are any.
        splits: names of the splits, if a column has them.
    """

    name: Callable[[int], str]
    labels: Sequence[str | None]
    images: Callable[[Preprocess], Reader] | None = None
    texts: Sequence[str | None] | None = None
    arrays: Tensor | None = None
    faults: Sequence[str] = ()
    groups: Sequence[str | None] | None = None
    splits: Sequence[str | None] | None = None


Found = LazyImages | RawTexts | Arrays


class Parts(NamedTuple):
    """A source's parts by name, names of its groups by number, parts that have no labels, and the columns read, in words."""

    sets: Mapping[str, Found]
    group_names: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    columns: str = ""


def make_sets(
    parts: Mapping[str, Rows],
    origin: str,
    preprocess: Preprocess | ArrayPreprocess,
    *,
    classes: Sequence[str] = (),
    known: Sequence[str] = (),
    skip_bad: bool = False,
    several: bool = False,
) -> Parts:
    """Sets of images that are decoded when they are asked for, of texts, or of arrays.

    Args:
        parts: by name; where a column says the splits, only one.
        origin: the source's name, for errors.
        preprocess: of images or arrays.
        classes: of an existing network, in label order.
        known: of the source, in label order; by default those that occur, sorted.
        skip_bad: leave out rows without label, group or text, and images that cannot be read.
        several: a sample has any number of labels.

    Raises:
        DataError: rows that cannot be used, labels that are no class, or a column of other words than splits.
    """
    number = number_label_sets if several else number_labels
    unlabelled = tuple(n for n, rows in parts.items() if len(rows.labels) and not any(_is_there(rows.labels, several)))
    parts = {name: rows for name, rows in parts.items() if name not in unlabelled}
    if not parts:
        raise DataError(f"data: {origin} has no labels: none of its rows has one")
    good = _find_good(parts, skip_bad, several)
    labels = {name: [rows.labels[i] or "" for i in good[name]] for name, rows in parts.items()}
    every = [label for found in labels.values() for label in found]
    _, names = number(every, classes or known, origin)
    groups = {name: [rows.groups[i] or "" for i in good[name]] for name, rows in parts.items() if rows.groups is not None}
    group_names = tuple(sorted({group for found in groups.values() for group in found}))
    sets: dict[str, Found] = {}
    for name, rows in parts.items():
        numbers = number(labels[name], names, origin)[0]
        ids = number_groups(groups[name], group_names).ids if name in groups else None
        whole = _make_set(rows, good[name], numbers, ids, names, preprocess, skip_bad)
        sets |= {name: whole} if rows.splits is None else _divide(whole, [rows.splits[i] for i in good[name]], origin)
    return Parts(sets, group_names, unlabelled)


def _is_there(values: Sequence[str | None], several: bool) -> Iterator[bool]:
    """Which of the labels are known; of several, none at all is known, too."""
    return ((value is not None) if several else bool(value and value.strip()) for value in values)


def _find_good(parts: Mapping[str, Rows], skip_bad: bool, several: bool) -> dict[str, list[int]]:
    """The rows that have all they need; raises a :class:`DataError` for others, unless they may be skipped."""
    good: dict[str, list[int]] = {}
    bad: list[str] = []
    for part, rows in parts.items():
        good[part] = []
        needed = {"group": rows.groups, "split": rows.splits, "text": rows.texts}
        columns = {what: values for what, values in needed.items() if values is not None}
        for i, is_labelled in enumerate(_is_there(rows.labels, several)):
            fault = rows.faults[i] if rows.faults else ""
            missing = [] if is_labelled else ["label"]
            missing += [what for what, values in columns.items() if not values[i] or not values[i].strip()]  # type: ignore[union-attr]
            if missing or fault:
                bad.append(f"{rows.name(i)}: {fault or f'no {missing[0]}'}")
            else:
                good[part].append(i)
    check_bad(bad, len(bad) + sum(map(len, good.values())), skip_bad, "rows")
    return good


def _make_set(
    rows: Rows,
    good: list[int],
    labels: Tensor,
    groups: Tensor | None,
    classes: tuple[str, ...],
    preprocess: Preprocess | ArrayPreprocess,
    skip_bad: bool,
) -> Found:
    if rows.arrays is not None:
        assert not isinstance(preprocess, Preprocess)
        return ArraySet(rows.arrays[torch.tensor(good, dtype=torch.int64)], labels, classes, preprocess, groups=groups)
    if rows.images is None:
        texts = rows.texts or ()
        if isinstance(texts, PackedStrings):  # which have no white space around them
            return RawTexts(texts.subset(torch.tensor(good)), labels, classes, groups)
        return RawTexts(PackedStrings((texts[i] or "").strip() for i in good), labels, classes, groups)
    chosen, total = torch.tensor(good, dtype=torch.int64), len(rows.labels)
    spread = [None if t is None else t.new_zeros(total, *t.shape[1:]).index_copy(0, chosen, t) for t in (labels, groups)]
    assert spread[0] is not None
    assert isinstance(preprocess, Preprocess)
    return LazyImages(rows.images(preprocess), spread[0], classes, preprocess, spread[1], skip_bad).subset(chosen)


def _divide(whole: Found, words: Sequence[str | None], origin: str) -> dict[str, Found]:
    """The parts that a column of split names says."""
    found = sorted({word or "" for word in words})
    unknown = [word for word in found if name_split(word) is None]
    if unknown:
        raise DataError(f"split_by: {origin} has the split {unknown[0]!r}: expected train, validation, calibration and test")
    return {word: whole.subset(torch.tensor([i for i, w in enumerate(words) if w == word])) for word in found}
