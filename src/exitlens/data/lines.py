"""Files with a text, a series or features in each row: CSV, JSON lines, plain lines, and ``.ts`` (of sktime and aeon)."""

from __future__ import annotations

import csv
import io
import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens.data.files import name_failures
from exitlens.data.readers import PackedStrings
from exitlens.data.rows import (
    KEY,
    ROLES,
    SEPARATOR,
    ColumnChoice,
    Columns,
    Kind,
    Role,
    Rows,
    Source,
    check_wanted,
    label_rows,
    looks_like_pattern,
    parse_columns,
)
from exitlens.data.splits import find_split_tables
from exitlens.errors import DataError, InputError

Row = Mapping[str, object] | str  # a string says what is wrong with the row
TABLES = (".csv", ".jsonl")
_PEEKED = 50  # rows that tell what a column holds
_TS_COLUMNS = Columns("series", ("series",), ("label",))
_TS_PART = re.compile(r"^(.+)_(train|test|validation|val|calibration)$", re.IGNORECASE)


def iterate_rows(path: Path, keys: Sequence[str] = ()) -> Generator[tuple[int, Row], None, None]:
    """Yield the rows of a file by line, counted from 1: their fields by column, or what is wrong with them.

    Bytes that are not UTF-8 become surrogates; a CSV file without the columns ``keys`` is a :class:`DataError`.
    """
    suffix = path.suffix.lower()
    with (
        name_failures(path),
        path.open("rb") as file,
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="" if suffix == ".csv" else "\n") as content,
    ):
        if suffix == ".csv":
            yield from _read_csv(content, path, keys)
            return
        for line, text in enumerate(content, 1):
            if not text.strip():
                continue
            if suffix == ".txt":
                yield line, {"text": text}
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                row = f"not JSON ({error})"
            else:
                row = row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
            yield line, row


def _read_csv(content: Iterable[str], path: Path, keys: Sequence[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(content, strict=True)
    try:
        rows = ((reader.line_num, row) for row in reader if row)
        head = [name.strip() for name in next(rows, (0, list(keys)))[1]]
        missing = [key for key in keys if key not in head]
        if missing:
            fix = "name columns in line 1, or by --columns"
            raise DataError(f"data: {path} has no column {missing[0]!r}, it has {head}. Fix: {fix}")
        for line, row in rows:
            counts = f"{len(row)} fields, the first line has {len(head)}: put texts with commas in quotes"
            yield line, dict(zip(head, row, strict=True)) if len(row) == len(head) else counts
    except csv.Error as error:
        raise DataError(f'data: {path}:{reader.line_num}: broken CSV ({error}). Fix: quote texts as "..."') from error


def peek_kinds(path: Path) -> dict[str, Kind]:
    """Return what each column of a CSV file holds: what nine in ten of its first fields are, or words."""
    columns: dict[str, Counter[Kind]] = {}
    with closing(iterate_rows(path)) as rows:
        for _, row in islice(rows, _PEEKED):
            for name, field in row.items() if isinstance(row, Mapping) else ():
                columns.setdefault(name, Counter())[classify_field(str(field))] += 1
    kinds: dict[str, Kind] = {}
    for name, counts in columns.items():
        del counts["other"]
        counts["float"] += counts["integer"]  # whole numbers may stand among others
        fitting: tuple[Kind, ...] = ("integer", "float", "list")
        enough = 0.9 * (counts.total() - counts["integer"])
        kinds[name] = next((kind for kind in fitting if counts[kind] >= enough), "string") if enough else "other"
    return kinds


def classify_field(field: str) -> Kind:
    """Return what a field of a CSV file is: a number, numbers, words, or nothing (``other``)."""
    if not field.strip():
        return "other"
    if parse_numbers(field) is not None:
        return "list"
    try:
        float(field)
    except ValueError:
        return "string"
    return "integer" if field.strip().lstrip("+-").isdecimal() else "float"


def parse_numbers(field: str) -> list[Any] | None:
    """Read the numbers of a field: a JSON list (or list of lists), or two or more with spaces or semicolons between."""
    text = field.strip()
    if text.startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return values if isinstance(values, list) else None
    words = text.replace(";", " ").split()
    try:
        return [float(word) for word in words] if len(words) > 1 else None
    except ValueError:
        return None


def to_series(value: object, shown: str) -> Tensor | str:
    """Return a list of numbers, or one for each channel, as ``(C,T)``; or what is wrong with it."""
    if not isinstance(value, list) or not value:
        return f"expected a list of numbers, got {shown:.40}"
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(value, dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError):
        return f"expected a list of numbers, or one for each channel with as many steps each, got {shown:.40}"
    if values.ndim not in (1, 2) or not values.size:
        return f"expected a list of numbers, or one for each channel, got shape {values.shape}"
    return torch.from_numpy(values.reshape(-1, values.shape[-1]))


def _parse_word(name: str, value: object, loose: bool = False, is_text: bool = False) -> tuple[str, str]:
    """Return a string, a whole number or a list (to be joined) as a stripped word, and what is wrong with it."""
    may_be_empty = loose
    if isinstance(value, list) and not is_text and all(isinstance(item, str | int) for item in value):
        value, may_be_empty = SEPARATOR.join(map(str, value)), True
    elif not is_text and (type(value) is int or (isinstance(value, bool | float) and loose)):
        value = str(value)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        return "", f"{name}: expected a string that is not empty, got {value!r:.60}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "", f"{name}: has bytes that are not UTF-8: save the file as UTF-8"
    return value.strip(), ""


def read_file(path: Path, columns: Columns, loose: bool = False) -> Rows:
    """Read the rows of a file, line by line; a row that cannot be used gets a fault.

    ``loose`` labels may be empty, or true and false, as several labels a sample are; numbers are checked later.
    """
    loose = loose or columns.task == "regression"
    kinds = TABLES if columns.labels else (*TABLES, ".txt")
    if path.suffix.lower() not in kinds:
        raise DataError(f"data: {path} is not a file of texts: expected {' or '.join(kinds)}")
    lines, faults, has_lists = array("q"), dict[int, str](), False
    texts, series, numbers = PackedStrings(), list[Tensor | None](), array("d")
    words: dict[str, list[str | None]] = {name: [] for name in columns.words}
    known: dict[str, str] = {}  # one object for all equal words
    for line, row in iterate_rows(path, tuple(dict.fromkeys((*columns.inputs, *columns.words)))):
        fields, problems = ({}, [row]) if isinstance(row, str) else (row, [])
        value = fields.get(columns.inputs[0])
        if columns.role == "text":
            text, problem = _parse_word(columns.inputs[0], value, is_text=True)
            texts.append(text)
            problems.append(problem)
        elif columns.role == "series":
            field = "" if value is None else str(value)
            values = to_series(parse_numbers(field), field)
            series.append(None if isinstance(values, str) else values)
            problems += [values] if isinstance(values, str) else []
        else:
            for name in columns.inputs:
                field = str(fields.get(name, "")).strip()
                try:
                    numbers.append(float(field or "nan"))
                except ValueError:
                    numbers.append(float("nan"))
                    problems.append(f"expected a number for {name!r}, got {field!r:.40}")
        for name, column in words.items():
            word, problem = _parse_word(name, fields.get(name), loose and name in columns.labels)
            has_lists = has_lists or (name in columns.labels and isinstance(fields.get(name), list))
            column.append(known.setdefault(word, word))
            problems.append(problem)
        if any(problems):
            faults[len(lines)] = next(filter(None, problems))
        lines.append(line)
    if not lines:
        raise DataError(f"data: {path} holds no rows. Fix: give a file of one or more")
    names = PackedStrings(f"{path}:{line}" for line in lines)
    rows = label_rows(names, columns, words, lambda: [key or "" for key in words[columns.key]] if columns.key else names)
    rows = rows._replace(faults=faults, several=rows.several or has_lists)
    if columns.role == "features":
        vectors = torch.tensor(numbers, dtype=torch.float64).float().view(len(names), -1)
        return rows._replace(arrays=vectors, features=columns.inputs)
    return rows._replace(texts=texts) if columns.role == "text" else rows._replace(series=series)


class TextFiles(Source):
    """A file of texts, or a folder of files that are named by split."""

    def __init__(self, path: Path, task: str = "") -> None:
        super().__init__(str(path), {})
        self.files = (find_split_tables(path, TABLES) if path.is_dir() else {}) or {"": path}
        self._task = task

    def find_columns(self, choice: ColumnChoice, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Take the named columns, or ``text`` and ``label``; missing ones are found when the files are read."""
        if choice.split_by and list(self.files) != [""]:
            has = f"{self.name} has a file for each split ({', '.join(self.files)})"
            raise InputError(f"split_by: {has}. Fix: leave it out")
        named = parse_columns(choice.columns, ROLES if wanted is None else (*ROLES, KEY))
        if wanted is not None:
            check_wanted(named, wanted)
        elif "image" in named:
            raise InputError(f"columns: {self.name} holds texts. Fix: give text=NAME and label=NAME")
        (text,), (key,) = named.get("text", ("text",)), named.get(KEY, ("",))
        labels = named.get("label", ("label",)) if wanted is None and choice.task != "embedding" else ()
        group, pattern = choice.group_by, ""
        if wanted is not None and looks_like_pattern(group):
            group, pattern = "", group
        return Columns("text", (text,), labels, key, group, choice.split_by, pattern, choice.task)

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Read every file."""
        loose = self._task == "multilabel" or len(columns.labels) > 1
        return {part: read_file(path, columns, loose) for part, path in self.files.items()}


class NumberFile(Source):
    """A CSV file of series or of features."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), peek_kinds(path))

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Read the file."""
        if columns.pattern:
            fix = "give a column, not a regular expression"
            raise InputError(f"group_by: {self.name} has rows without file names. Fix: {fix}")
        return {"": read_file(Path(self.name), columns)}


def find_ts_files(path: Path) -> dict[str, Path]:
    """Return one file, or ``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` of a folder, by part."""
    if not path.is_dir():
        return {"": path}
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".ts" and not file.name.startswith("."))
    if len(files) == 1:
        return {"": files[0]}
    matches = [_TS_PART.match(file.stem) for file in files]
    if not all(matches) or len({match[1] for match in matches if match}) != 1:
        names = ", ".join(file.name for file in files[:4])
        raise DataError(f"data: {path} has {names}: expected NAME_TRAIN.ts and NAME_TEST.ts")
    return {match[2].lower(): file for match, file in zip(matches, files, strict=True) if match}


def read_ts(path: Path, columns: Columns = _TS_COLUMNS) -> Rows:
    """Read a ``.ts`` file; a series that is not as the header says gets a fault.

    Below ``@data`` each line is one series: channels and label with colons between, values with commas.
    """
    series, labels, names, faults = list[Tensor | None](), list[str | None](), list[str](), dict[int, str]()
    with name_failures(path), path.open("rb") as file:
        numbered = ((number, raw.decode("utf-8", "replace").strip()) for number, raw in enumerate(file, 1))
        rows = ((number, line) for number, line in numbered if line and not line.startswith(("#", "%")))
        has_labels, classes, channel_count = _read_ts_header(rows, path, columns)
        for number, line in rows:
            *channels, label = line.split(":") if has_labels else [*line.split(":"), ""]
            if channel_count not in (0, len(channels)):
                values: Tensor | str = f"{len(channels)} channel(s), the header says {channel_count}"
            elif classes and label.strip() not in classes:
                values = f"the class {label.strip()!r:.40}, which the header does not name ({', '.join(classes[:5])})"
            else:
                values = _parse_series(channels)
            if isinstance(values, str):
                faults[len(series)] = values
            series.append(None if isinstance(values, str) else values)
            labels.append(label.strip() or None)
            names.append(f"{path}:{number}")
    if not series:
        raise DataError(f"data: {path} has no series: expected one in each line below @data")
    listed = label_rows(names, columns, {"label": labels}, lambda: names)
    return listed._replace(series=series, faults=faults, classes=classes or listed.classes)


def _read_ts_header(rows: Iterable[tuple[int, str]], path: Path, columns: Columns) -> tuple[bool, tuple[str, ...], int]:
    """Return whether there are labels, the names of the classes (or none) and the number of channels (0: unknown)."""
    fields: dict[str, list[str]] = {}
    for _, line in rows:
        key, *words = line.split()
        if key.lower() == "@data":
            break
        if not key.startswith("@"):
            expected = f"expected lines such as @classLabel above @data, got {line!r:.40}"
            raise DataError(f"data: {path} is not a .ts file: {expected}")
        fields[key.lower()] = words
    else:
        raise DataError(f"data: {path} is not a .ts file: it has no line @data")

    def is_true(key: str) -> bool:
        return bool(fields.get(key)) and fields[key][0].lower() == "true"

    if is_true("@timestamps"):
        fix = "write it with @timeStamps false"
        raise DataError(f"data: {path} has time stamps, expected values at equal steps. Fix: {fix}")
    wanted, what = ("@targetLabel", "numbers") if columns.task == "regression" else ("@classLabel", "class labels")
    if columns.labels and not is_true(wanted.lower()):
        raise DataError(f"data: {path} has no {what}: expected {wanted} true")
    dimensions = fields.get("@dimensions") or fields.get("@dimension") or ["1" if is_true("@univariate") else "0"]
    if not dimensions[0].isdecimal():
        raise DataError(f"data: {path}: @dimensions: expected a number of channels, got {dimensions[0]!r:.40}")
    has_labels = is_true("@classlabel") or is_true("@targetlabel")
    classes = tuple(fields[wanted.lower()][1:]) if columns.labels else ()
    return has_labels, classes, int(dimensions[0])


def _parse_series(channels: Sequence[str]) -> Tensor | str:
    """Return one series ``(C,T)``, or what is wrong with it."""
    values: list[list[float]] = []
    for number, text in enumerate(channels):
        try:
            values.append([float(word) if word.strip() != "?" else float("nan") for word in text.split(",")])
        except ValueError:
            return f"expected numbers with commas between in channel {number}, got {text.strip()!r:.40}"
    counts = {len(steps) for steps in values}
    if len(counts) != 1:
        return f"its channels have {min(counts, default=0)} to {max(counts, default=0)} steps: expected as many in each"
    return torch.tensor(values, dtype=torch.float32)


class TsFiles(Source):
    """One ``.ts`` file, or a folder of a training and a test file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), {})

    def find_columns(self, choice: ColumnChoice, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Refuse names of columns, which these files do not have; samples without labels may be grouped by their names."""
        pattern = choice.group_by if wanted is not None and looks_like_pattern(choice.group_by) else ""
        if any(choice._replace(group_by="" if pattern else choice.group_by, task="")) or choice.task == "multilabel":
            words = "columns, group_by, split_by, task"
            raise InputError(f"{words}: {self.name} is a .ts file, without columns. Fix: leave them out")
        labels = _TS_COLUMNS.labels if wanted is None and choice.task != "embedding" else ()
        return _TS_COLUMNS._replace(labels=labels, pattern=pattern, task=choice.task)

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Read every file."""
        return {part: read_ts(file, columns) for part, file in find_ts_files(Path(self.name)).items()}
