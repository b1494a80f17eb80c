"""Rows of text files (CSV, JSON lines, plain lines), each of them checked, because files come from strangers."""

from __future__ import annotations

import csv
import io
import json
from array import array
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from exitlens.data.checks import SEPARATOR, check_bad
from exitlens.data.formats.columns import Kind
from exitlens.data.loading.packed import PackedStrings
from exitlens.errors import DataError

Row = Mapping[str, object] | str  # a string says what is wrong with the row

TABLES = (".csv", ".jsonl")
_PEEKED = 50  # rows that tell what a column holds


class Columns(NamedTuple):
    """N rows by column.

    Attributes:
        texts: the values of the first key.
        words: those of the others, by key; equal ones are one object. Of a JSON list, its values with ``;`` between.
        lines: of the file, from 1.
        listed: keys that had lists.
    """

    texts: PackedStrings
    words: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    listed: frozenset[str] = frozenset()


@contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, or a :class:`DataError` that says why they cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"data: {path} cannot be read ({type(error).__name__}): give a file of texts") from error


def read_columns(
    path: Path,
    keys: tuple[str, ...],
    skip_bad: bool,
    skipped: list[str] | None = None,
    labels: Collection[str] = (),
) -> Columns:
    """The values of ``keys`` (the text first) of every row; raises for rows without, unless skipped.

    The file is read line by line, and a million rows take little more than the bytes of their texts.
    ``skipped`` gets what is wrong with rows that are; ``labels``: keys of several labels, whose values may be
    empty, or true and false.
    """
    kinds = TABLES if len(keys) > 1 else (*TABLES, ".txt")
    if path.suffix.lower() not in kinds:
        raise DataError(f"data: {path} is no file of texts: expected {' or '.join(kinds)}")
    is_csv = path.suffix.lower() == ".csv"
    texts, lines, bad = PackedStrings(), array("q"), list[str]()
    words: dict[str, list[str]] = {key: [] for key in keys[1:]}
    known, listed = dict[str, str](), set[str]()  # one object for all equal words
    with open_file(path) as file:
        content = _decode(file, "" if is_csv else "\n")
        for line, values in _read_csv(content, path, keys) if is_csv else _read_lines(content, path.suffix.lower()):
            fields = values if isinstance(values, str) else _pick_fields(values, keys, labels)
            if isinstance(fields, str):
                bad.append(f"{path}, line {line}: {fields}")
                continue
            listed |= {key for key in keys if isinstance(values, Mapping) and isinstance(values[key], list)}
            texts.append(fields[keys[0]])
            lines.append(line)
            for key, found in words.items():
                found.append(known.setdefault(fields[key], fields[key]))
    check_bad(bad, len(texts) + len(bad), skip_bad, "rows")
    if skipped is not None:
        skipped += bad
    if not texts:
        raise DataError(f"data: {path} holds no texts: give a file of one or more")
    return Columns(texts, words, lines, frozenset(listed))


def _decode(file: io.BufferedReader, newline: str) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 become surrogates."""
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=newline)


def iterate_csv(path: Path, keys: tuple[str, ...] = ()) -> Generator[tuple[int, Row], None, None]:
    """The rows of a CSV file by line, from its second: their fields by column, or what is wrong with them.

    Raises:
        DataError: a file that cannot be read, is broken, or lacks one of the columns ``keys``.
    """
    with open_file(path) as file, _decode(file, "") as content:
        yield from _read_csv(content, path, keys)


def peek_kinds(path: Path) -> dict[str, Kind]:
    """What each column of a CSV file holds: what nine in ten of its first fields are, or words; empty ones do not count."""
    found: dict[str, Counter[Kind]] = {}
    with closing(iterate_csv(path)) as rows:
        for _, row in islice(rows, _PEEKED):
            for name, field in row.items() if isinstance(row, Mapping) else ():
                found.setdefault(name, Counter())[classify_field(str(field))] += 1
    return {name: _sum_up(counts) for name, counts in found.items()}


def _sum_up(counts: Counter[Kind]) -> Kind:
    del counts["other"]
    most: float = 0.9 * counts.total()
    if not counts or counts["integer"] >= most:
        return "integer" if counts else "other"
    if counts["integer"] + counts["float"] >= most:
        return "float"
    return "list" if counts["list"] >= most else "string"


def classify_field(field: str) -> Kind:
    """What a field of a CSV file is: a number, numbers, words, or nothing (``other``)."""
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
    """Numbers in one field: a JSON list (or one of lists), or two numbers or more with spaces or semicolons between."""
    text = field.strip()
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, list) else None
    words = text.replace(";", " ").split()
    try:
        return [float(word) for word in words] if len(words) > 1 else None
    except ValueError:
        return None


def _read_csv(content: Iterable[str], path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(content, strict=True)
    try:
        rows = ((reader.line_num, row) for row in reader if row)
        head = [name.strip() for name in next(rows, (0, list(keys)))[1]]
        missing = [key for key in keys if key not in head]
        if missing:
            raise DataError(
                f"data: {path} has no column {missing[0]!r}, it has {head}: name columns in its first line, or by --columns"
            )
        for line, row in rows:
            wrong = f"{len(row)} fields, the first line has {len(head)}: put texts with commas in quotes"
            yield line, dict(zip(head, row, strict=True)) if len(row) == len(head) else wrong
    except csv.Error as error:
        raise DataError(f'data: {path}, line {reader.line_num}: broken CSV ({error}): quote texts as "..."') from error


def _read_lines(content: Iterable[str], suffix: str) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(content, 1):
        if text.strip():
            yield line, {"text": text} if suffix == ".txt" else _parse_json(text)


def _parse_json(text: str) -> Row:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    return values if isinstance(values, dict) else f"expected a JSON object, got {type(values).__name__}"


def _pick_fields(values: Mapping[str, object], keys: tuple[str, ...], labels: Collection[str]) -> dict[str, str] | str:
    """The values of ``keys`` without white space around them, or what is wrong with them."""
    found = {}
    for key in keys:
        value = values.get(key)
        is_list = isinstance(value, list) and key != keys[0]
        if isinstance(value, list) and is_list and all(isinstance(one, str | int) for one in value):
            value = SEPARATOR.join(map(str, value))
        elif type(value) is int or (isinstance(value, bool) and key in labels):
            value = value if key == keys[0] else str(value)
        if not isinstance(value, str) or not (value.strip() or is_list or key in labels):
            return f"{key}: expected a string that is not empty, got {value!r:.60}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{key}: has bytes that are not UTF-8: save the file as UTF-8"
        found[key] = value.strip()
    return found
