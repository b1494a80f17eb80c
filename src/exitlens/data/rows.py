"""Rows and their columns: the form in which every format gives its samples, before they become sets or streams."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from exitlens.data.readers import EncodedImages, check_bad
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, Modality
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import CONTINUOUS

Kind = Literal["image", "class", "integer", "float", "string", "bytes", "list", "words", "other"]
# list: of numbers; words: a list of classes or strings
Role = Literal["image", "text", "series", "features"]
SAMPLES: dict[Role, Modality] = {"image": IMAGE, "text": TEXT, "series": SERIES, "features": VECTOR}
ROLES = (*SAMPLES, "label")
KEY = "key"  # the role of a column that names rows without labels
SEPARATOR = ";"  # between the labels of one sample, in words
FLAGS = {"0": False, "1": True, "false": False, "true": True}
IMAGE_NAMES = (
    "image", "img", "picture", "photo", "pixels", "file_name", "filename", "file", "image_path", "path", "filepath"
)  # fmt: skip
SERIES_NAMES = ("series", "signal", "values", "x", "data", "audio")
TEXT_NAMES = ("text", "txt", "sentence", "review", "content", "document", "comment", "body")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "y", "cls")
_FIX = "image=NAME,label=NAME (or text=NAME, series=NAME, features=A|B)"


class Columns(NamedTuple):
    """Names of the columns to read."""

    role: Role
    inputs: tuple[str, ...]  # columns of the samples; features have several
    labels: tuple[str, ...] = ()  # one column of words, several of 0 and 1, or none
    key: str = ""  # column that names a row
    group: str = ""  # column of the group
    split: str = ""  # column of the split
    pattern: str = ""  # a regular expression for the group, in place of a column
    task: str = ""  # that of the choice

    @property
    def words(self) -> tuple[str, ...]:
        """The columns that are read as words, each once."""
        return tuple(dict.fromkeys(filter(None, (*self.labels, self.key, self.group, self.split))))

    def __str__(self) -> str:
        label, count = "|".join(self.labels) or "none", len(self.inputs)
        if self.role == "features":
            names = ", ".join(self.inputs) if count < 8 else f"{', '.join(self.inputs[:3])}, ..., {self.inputs[-1]}"
            return f"vectors of {count} features ({names}), labels from {label!r}"
        return f"{SAMPLES[self.role].plural} from {self.inputs[0]!r}, labels from {label!r}"


def parse_columns(words: str, roles: tuple[str, ...] = ROLES) -> dict[str, tuple[str, ...]]:
    """Read ``"image=NAME,label=NAME"`` (or ``text=NAME``, ``series=NAME``, ``features=A|B``) into names by role.

    ``label=A|B|C`` names several columns, of 0 and 1; other words are an :class:`InputError`.
    """
    columns: dict[str, tuple[str, ...]] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        role, _, name = (part.strip() for part in word.partition("="))
        if role not in roles or not name or role in columns:
            kinds = "image=NAME, text=NAME, series=NAME or features=A|B"
            raise InputError(f"columns: expected {kinds}, and {roles[-1]}=NAME, with commas between, got {words!r}")
        several = role in ("features", "label")
        columns[role] = tuple(part.strip() for part in name.split("|")) if several else (name,)
        if not all(columns[role]) or len(set(columns[role])) < len(columns[role]):
            raise InputError(f"columns: expected several different columns as {role}=A|B|C, got {words!r}")
    if len(columns.keys() & set(SAMPLES)) > 1:
        raise InputError(f"columns: expected image=NAME, text=NAME, series=NAME or features=A|B, got several: {words!r}")
    return columns


def find_columns(
    kinds: Mapping[str, Kind], given: str, origin: str, reserved: Iterable[str] = (), task: str = ""
) -> Columns:
    """Find the columns of samples and labels, by what each column holds (``kinds``).

    Columns that ``given`` names are taken, whatever their kind; ``reserved`` ones have other uses (group, split). The label
    of ``regression`` is a number, and ``embedding`` has none. Columns that are missing or ambiguous are a
    :class:`DataError`.
    """
    named = parse_columns(given)
    free = _find_free(kinds, named, origin, reserved)
    role = next((role for role in SAMPLES if role in named), None)
    inputs = named[role] if role else ()
    if role is None and (image := _pick_image(free, kinds, origin)):
        role, inputs = "image", (image,)
    labels = named.get("label", ())
    taken = (*inputs, "txt") if role == "image" else inputs  # txt beside an image is a caption
    rest = {name: kind for name, kind in free.items() if name not in taken}
    if task == "embedding":
        labels, free = (), {name: kind for name, kind in free.items() if name.lower() not in LABEL_NAMES}
    elif not labels and task == "regression":
        numbers = [name for name, kind in rest.items() if kind in ("integer", "float")]
        labels = (_pick(numbers, LABEL_NAMES) or _refuse("label", numbers, kinds, origin),)
    elif not labels:
        lone = _find_lone_label(free) if role is None else ""
        labels = (lone or _pick_label(rest, role not in (None, "text"), kinds, origin),)
    if role is None:
        role, inputs = _pick_inputs({n: k for n, k in free.items() if n not in labels}, kinds, origin)
    return Columns(role, inputs, labels)


def find_inputs(
    kinds: Mapping[str, Kind],
    given: str,
    origin: str,
    wanted: Role,
    features: Collection[str] = (),
    reserved: Iterable[str] = (),
) -> Columns:
    """Find the columns of the samples that a network takes (``wanted``), without labels, as :func:`find_columns` does.

    ``given`` may also name a column of keys (``key=NAME``), or one that is not wanted (``label=NAME``). The network's
    ``features`` are taken if all of them are there.
    """
    named = parse_columns(given, (*ROLES, KEY))
    check_wanted(named, wanted)
    free = _find_free(kinds, named, origin, reserved)
    (key,) = named.get(KEY, ("",))
    if wanted in named:
        return Columns(wanted, named[wanted], key=key)
    unnamed = [name for name, kind in free.items() if name.lower() not in LABEL_NAMES]
    if wanted == "features":
        numbers = tuple(name for name in unnamed if free[name] in ("integer", "float"))
        inputs = tuple(features) if features and set(features) <= free.keys() else numbers
    elif wanted == "image":
        inputs = tuple(filter(None, (_pick_image(free, kinds, origin),)))
    else:
        kind, usual = ("list", SERIES_NAMES) if wanted == "series" else ("string", TEXT_NAMES)
        fitting = [name for name in free if free[name] == kind]
        if wanted == "text":
            fitting = [name for name in fitting if name in unnamed] or fitting
        inputs = (_pick(fitting, usual) or _refuse(wanted, fitting, kinds, origin, f"{wanted}=NAME"),)
    fix = "features=A|B" if wanted == "features" else f"{wanted}=NAME"
    return Columns(wanted, inputs or (_refuse(wanted, [], kinds, origin, fix),), key=key)


def check_wanted(named: Collection[str], wanted: Role) -> None:
    """Raise :class:`InputError` if columns of images are given for a network of texts, and so on."""
    for other in SAMPLES:
        if other in named and other != wanted:
            fix = f"give {wanted}=NAME in its place"
            raise InputError(f"columns: the network takes {SAMPLES[wanted].plural}, got {other}=NAME. Fix: {fix}")


def _find_free(
    kinds: Mapping[str, Kind], named: Mapping[str, Sequence[str]], origin: str, reserved: Iterable[str]
) -> dict[str, Kind]:
    """Return the columns that nobody named; raise :class:`DataError` for a named one that is not there."""
    for role, names in named.items():
        for name in names:
            if name not in kinds:
                roles = role if role.endswith("s") else f"{role}s"
                has = f"{_list_kinds(kinds)}.{suggest(name, kinds)}"
                raise DataError(f"data: {origin} has no column {name!r} for the {roles}; {has}")
    taken = {*reserved, *(name for names in named.values() for name in names)}
    return {name: kind for name, kind in kinds.items() if name not in taken}


def _list_kinds(kinds: Mapping[str, Kind]) -> str:
    return "it has " + ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _pick(names: Iterable[str], usual: tuple[str, ...]) -> str:
    """Return the only name, or the most usual of several; empty if there is none."""
    by_word = {name.lower(): name for name in names}
    if len(by_word) == 1:
        return next(iter(by_word.values()))
    return next((by_word[word] for word in usual if word in by_word), "")


def _pick_image(free: Mapping[str, Kind], kinds: Mapping[str, Kind], origin: str) -> str:
    for wanted in ("image", "bytes"):
        names = [name for name, kind in free.items() if kind == wanted]
        if names:
            return _pick(names, IMAGE_NAMES) or _refuse("image", names, kinds, origin)
    return _pick((name for name, kind in free.items() if kind == "string" and name.lower() in IMAGE_NAMES), IMAGE_NAMES)


def _pick_inputs(free: Mapping[str, Kind], kinds: Mapping[str, Kind], origin: str) -> tuple[Role, tuple[str, ...]]:
    """Find series, features or texts among columns without images and labels."""
    strings = [name for name, kind in free.items() if kind == "string"]
    lists = [name for name, kind in free.items() if kind == "list"]
    numbers = [name for name, kind in free.items() if kind in ("integer", "float")]
    if lists and not any(name.lower() in TEXT_NAMES for name in strings):
        return "series", (_pick(lists, SERIES_NAMES) or _refuse("series", lists, kinds, origin),)
    if numbers and len(numbers) == len(free):
        return "features", tuple(numbers)
    return "text", (_pick(strings, TEXT_NAMES) or _refuse("image or text", strings, kinds, origin),)


def _find_lone_label(free: Mapping[str, Kind]) -> str:
    """Return the only column of words if it has to be the label: beside lists, or numbers none of which could be it."""
    strings = [name for name, kind in free.items() if kind == "string"]
    present = set(free.values())
    usual = any(name.lower() in LABEL_NAMES for name in free if name not in strings)
    if len(strings) != 1 or strings[0].lower() in TEXT_NAMES or "class" in present or usual:
        return ""
    is_numeric = present <= {"string", "float", "integer"} and "float" in present
    numbers = is_numeric and (len(free) > 3 or "integer" not in present)
    return strings[0] if numbers or "list" in present else ""


def _pick_label(free: Mapping[str, Kind], lone_is_label: bool, kinds: Mapping[str, Kind], origin: str) -> str:
    classes = [name for name, kind in free.items() if kind == "class"]
    if classes:
        return _pick(classes, LABEL_NAMES) or _refuse("label", classes, kinds, origin)
    plain = [name for name, kind in free.items() if kind in ("integer", "string", "words")]
    usual = [name for name, kind in free.items() if name.lower() in LABEL_NAMES and (name in plain or kind == "list")]
    if not usual and not lone_is_label:
        plain = [name for name in plain if free[name] in ("integer", "words")]  # a lone string is the text
    return _pick(usual or plain, LABEL_NAMES) or _refuse("label", plain, kinds, origin)


def _refuse(role: str, names: list[str], kinds: Mapping[str, Kind], origin: str, fix: str = _FIX) -> str:
    several = f"several columns could hold the {role} ({', '.join(names)})"
    problem = several if names else f"no column seems to hold the {role}"
    raise DataError(f"data: {origin}: {problem}, {_list_kinds(kinds)}. Fix: name the columns by --columns {fix}")


class ColumnChoice(NamedTuple):
    """A user's choice of columns of a source, and what they mean; where a field is empty, we choose."""

    columns: str = ""  # which columns to read, see :func:`parse_columns`
    group_by: str = ""  # a column, or a regular expression on file names; samples that agree in it belong together
    split_by: str = ""  # a column that names the split of each sample
    task: str = ""  # of a network, or empty; of ``multilabel``, the labels of a sample have ``;`` between them


class Rows(NamedTuple):
    """N samples of one kind, from one part of a source; ``None`` stands for a value that is missing."""

    names: Sequence[str]  # names of the rows, the same in every run
    images: Callable[[Preprocess], EncodedImages] | None = None  # makes a reader of the images, or
    texts: Sequence[str | None] | None = None  # perhaps read when they are asked for, or
    series: Sequence[Tensor | None] | None = None  # (C,T) each, or
    arrays: Tensor | None = None  # (N,*S) float32; rows with a fault hold any values
    features: tuple[str, ...] = ()  # names, if ``arrays`` are vectors
    labels: Sequence[str | None] | None = None  # class names or numbers; several have ``;`` between them
    numbers: Tensor | None = None  # (N,C) if labels are numbers, not finite where they are none; (N,0) without labels
    keys: Sequence[str | None] | None = None
    groups: Sequence[str | None] | None = None
    splits: Sequence[str | None] | None = None
    faults: Mapping[int, str] = {}  # what is wrong with samples, by row
    damage: tuple[str, ...] = ()  # what is wrong with files whose samples are missing here
    classes: tuple[str, ...] = ()  # classes known to the source, in label order
    several: bool = False  # a sample has any number of labels


def label_rows(
    names: Sequence[str], columns: Columns, words: Mapping[str, Sequence[str | None]], paths: Callable[[], Sequence[str]]
) -> Rows:
    """Return rows without contents: labels, keys, groups and splits from the columns in ``words``.

    Several label columns hold 0 and 1, or numbers; ``paths`` gives what a regular expression for groups is matched with.
    """
    labels, joined, numbers = columns.labels, words.get("".join(columns.labels)), None
    if columns.task in CONTINUOUS:
        fields = [[value or "" for value in row] for row in zip(*(words[label] for label in labels), strict=True)]
        values = [_read_number(field) for row in fields for field in row]
        numbers = torch.tensor(values, dtype=torch.float64).float().view(len(names), len(labels))
        joined = [SEPARATOR.join(row).strip(SEPARATOR) for row in fields] if labels else None
    elif len(labels) > 1:
        joined = join_flags({label: words[label] for label in labels}, names)
    return Rows(
        names,
        labels=joined,
        numbers=numbers,
        keys=words.get(columns.key),
        groups=match_groups(columns.pattern, paths()) if columns.pattern else words.get(columns.group),
        splits=words.get(columns.split),
        classes=labels if len(labels) > 1 or numbers is not None else (),
        several=len(labels) > 1 and numbers is None,
    )


def _read_number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


class Source(ABC):
    """A table, a file or shards, each row of which is a sample; ``kinds`` says what each column holds."""

    def __init__(self, name: str, kinds: Mapping[str, Kind]) -> None:
        self.name, self.kinds = name, dict(kinds)

    def find_columns(self, choice: ColumnChoice, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Choose the columns of samples and labels; or, without labels, of the samples that a network takes (``wanted``)."""
        group, split, pattern = choice.group_by, choice.split_by, ""
        if looks_like_pattern(group) and group not in self.kinds:
            group, pattern = "", group
        for column, argument in ((split, "split_by"), (group, "group_by")):
            if column and column not in self.kinds:
                known = f"it has {', '.join(self.kinds)}.{suggest(column, self.kinds)}"
                raise DataError(f"{argument}: {self.name} has no column {column!r}; {known}")
        if wanted is None:
            columns = find_columns(self.kinds, choice.columns, self.name, (group, split), choice.task)
        else:
            columns = find_inputs(self.kinds, choice.columns, self.name, wanted, features, (group, split))
        return columns._replace(group=group, split=split, pattern=pattern, task=choice.task)

    @abstractmethod
    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Return the rows of every part by its name, or of all parts as one (``joined``) by the name ``""``.

        ``skip_bad`` takes the samples of damaged files that are whole.
        """


def check_rows(
    parts: Mapping[str, Rows], skip_bad: bool, several: bool = False
) -> tuple[dict[str, Sequence[int]], list[str]]:
    """Return the complete rows of each part, and what is wrong with the others, if those may be skipped."""
    good: dict[str, Sequence[int]] = {}
    bad: list[str] = []
    for part, rows in parts.items():
        faults = dict(rows.faults)
        needed = {"label": rows.labels, "group": rows.groups, "split": rows.splits, "key": rows.keys, "text": rows.texts}
        for what, values in needed.items():
            for i in find_missing(() if values is None else values, what == "label" and several):
                faults.setdefault(i, f"no {what}")
        odd = () if rows.numbers is None else (~rows.numbers.isfinite()).any(1).nonzero().flatten().tolist()
        for i in odd:
            wanted = f"{len(rows.classes)} finite number(s)"
            faults.setdefault(i, f"{'|'.join(rows.classes)}: expected {wanted}, got {(rows.labels or ())[i]!r:.60}")
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


def number_labels(
    values: Sequence[str], classes: Sequence[str], origin: str, several: bool = False
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels ``(N,)`` ``int64``, or for ``several`` a sample ``(N,C)`` bool, and the classes' names in label order.

    ``classes`` are the names to use; by default those that occur, sorted: whole numbers by value, so that 10 follows 9.
    """
    sets = [[word for part in value.split(SEPARATOR) if (word := part.strip())] for value in values] if several else []
    words = dict.fromkeys(word for labels in sets for word in labels) if several else dict.fromkeys(values)
    names = tuple(classes) or tuple(sorted(words, key=int if all(word.isdecimal() for word in words) else str))
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
