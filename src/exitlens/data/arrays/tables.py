"""Tables of which each row is a series (a list of numbers) or a vector (columns of numbers): CSV, Parquet and Arrow."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitlens.data.arrays.raw import RawPart
from exitlens.data.formats.columns import Columns, Kind, find_columns
from exitlens.data.formats.groups import looks_like_pattern
from exitlens.data.formats.tables import Table
from exitlens.data.rows import iterate_csv, parse_numbers, peek_kinds
from exitlens.errors import DataError, InputError, suggest

_ROWS = 1 << 10  # of a column of lists that are read at once


class Wanted(NamedTuple):
    """Columns to read: of a series or of features, and of words (labels, groups, splits, keys)."""

    series: str
    features: tuple[str, ...]
    words: tuple[str, ...]


class NumberRows(NamedTuple):
    """N rows: ``series`` or ``vectors (N,F)``, what is wrong with each, words by column, and lines (of tables, rows)."""

    series: Sequence[Tensor | None]
    vectors: Tensor | None
    faults: Sequence[str]
    words: Mapping[str, Sequence[str | None]]
    lines: Sequence[int]


class NumberTable:
    """A CSV file or an open :class:`~exitlens.data.formats.tables.Table`, read as numbers.

    Args:
        source: which of them.
    """

    def __init__(self, source: Path | Table) -> None:
        self._source = source
        self.name = str(source) if isinstance(source, Path) else source.name
        self.kinds: Mapping[str, Kind] = peek_kinds(source) if isinstance(source, Path) else source.kinds

    def read(self, wanted: Wanted) -> dict[str, NumberRows]:
        """The rows of every part, by its name; a CSV file has one, without a name.

        Raises:
            DataError: a file that cannot be read, or without rows.
        """
        if isinstance(self._source, Path):
            return {"": _read_csv(self._source, wanted)}
        return {part: _read_part(self._source, part, wanted) for part in self._source.parts}

    def find_columns(self, given: str, reserved: Sequence[str] = ()) -> Columns:
        """The columns of samples and labels, see :func:`~exitlens.data.formats.columns.find_columns`."""
        return find_columns(self.kinds, given, self.name, reserved)

    def list_parts(self, given: str, group_by: str, split_by: str, features: Sequence[str] = ()) -> tuple[Any, Columns]:
        """Every part as :class:`RawPart` by its name, and the columns read.

        Args:
            given: of ``--columns``.
            group_by: a column.
            split_by: a column; the source may have one part only then.
            features: of an existing network, which are taken where all are there.

        Raises:
            DataError: columns that are not there or unclear.
        """
        for column, argument in ((group_by, "group_by"), (split_by, "split_by")):
            if column:
                self.check_column(column, argument)
        columns = self.find_columns(given, [group_by, split_by])
        if columns.features and features and set(features) <= self.kinds.keys():
            columns = columns._replace(features=tuple(features))
        words = tuple(filter(None, (columns.label, group_by, split_by)))
        found = self.read(Wanted(columns.series, columns.features, words))
        if split_by and len(found) > 1:
            raise DataError(f"split_by: {self.name} has parts already ({', '.join(found)}): leave it out")
        parts = {}
        for part, rows in found.items():
            parts[part] = RawPart(
                self._name_rows(part, rows.lines),
                rows.words[columns.label],
                rows.series,
                rows.vectors,
                columns.features,
                rows.faults,
                rows.words.get(group_by),
                rows.words.get(split_by),
            )
        return parts, columns

    def _name_rows(self, part: str, lines: Sequence[int]) -> Callable[[int], str]:
        start = f"{self.name}, {'line' if isinstance(self._source, Path) else f'{part} row' if part else 'row'}"
        return lambda i: f"{start} {lines[i]}"

    def check_column(self, column: str, argument: str) -> None:
        """Raises an error for a column that is not there."""
        if column in self.kinds:
            return
        if looks_like_pattern(column):
            raise InputError(f"{argument}: {self.name} has rows without file names: give a column, not a regular expression")
        known = ", ".join(self.kinds)
        raise DataError(f"{argument}: {self.name} has no column {column!r}; it has {known}.{suggest(column, self.kinds)}")


def _read_csv(path: Path, wanted: Wanted) -> NumberRows:
    keys = tuple(filter(None, (wanted.series, *wanted.features, *wanted.words)))
    numbers, lines = array("d"), array("q")
    series: list[Tensor | None] = []
    faults: list[str] = []
    words: dict[str, list[str | None]] = {name: [] for name in wanted.words}
    known: dict[str, str] = {}  # one object for all equal words
    for line, row in iterate_csv(path, keys):
        lines.append(line)
        fields = row if isinstance(row, Mapping) else dict.fromkeys(keys, "")
        values, fault = _read_features(fields, wanted.features)
        numbers.extend(values)
        if wanted.series:
            found = _to_series(parse_numbers(str(fields[wanted.series])), str(fields[wanted.series]))
            series.append(None if isinstance(found, str) else found)
            fault = found if isinstance(found, str) else fault
        faults.append(row if isinstance(row, str) else fault)
        for name, column in words.items():
            word = str(fields[name]).strip()
            column.append(known.setdefault(word, word) or None)
    if not lines:
        raise DataError(f"data: {path} has no rows: give a file of one or more")
    vectors = torch.tensor(numbers, dtype=torch.float64).float().view(-1, len(wanted.features)) if wanted.features else None
    return NumberRows(series, vectors, faults, words, lines)


def _read_features(fields: Mapping[str, object], names: Sequence[str]) -> tuple[list[float], str]:
    """Numbers, NaN for empty fields, and what is wrong with one of them."""
    found, fault = [], ""
    for name in names:
        field = str(fields[name]).strip()
        try:
            found.append(float(field) if field else float("nan"))
        except ValueError:
            found.append(float("nan"))
            fault = fault or f"expected a number for {name!r}, got {field!r:.40}"
    return found, fault


def _read_part(table: Table, part: str, wanted: Wanted) -> NumberRows:
    data = table.parts[part]
    words = {name: table.read_words(data, name) for name in wanted.words}
    if wanted.features:
        columns = [_to_floats(data, name, table.name) for name in wanted.features]
        return NumberRows((), torch.from_numpy(np.stack(columns, 1)), [""] * len(data), words, range(len(data)))
    found = [_to_series(value, repr(value)) for value in _iterate_values(data, wanted.series)]
    series = [None if isinstance(one, str) else one for one in found]
    return NumberRows(series, None, [one if isinstance(one, str) else "" for one in found], words, range(len(data)))


def _iterate_values(data: Any, column: str) -> Iterator[Any]:
    for chunk in data.data.column(column).chunks:
        for at in range(0, len(chunk), _ROWS):
            yield from chunk.slice(at, _ROWS).to_pylist()


def _to_floats(data: Any, column: str, origin: str) -> Any:  # -> (N,) float32, NaN for nulls
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(data.data.column(column).to_numpy(), dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"data: {origin}: expected numbers in column {column!r} ({error}): name others by --columns"
        ) from error


def _to_series(value: object, shown: str) -> Tensor | str:
    """A list of numbers, or one for each channel, as ``(C,T)``; or what is wrong with it."""
    if not isinstance(value, list) or not value:
        return f"expected a list of numbers, got {shown:.40}"
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.asarray(value, dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError):
        return f"expected a list of numbers, or one for each channel with as many steps each, got {shown:.40}"
    if found.ndim not in (1, 2) or not found.size:
        return f"expected a list of numbers, or one for each channel, got shape {found.shape}"
    return torch.from_numpy(found.reshape(-1, found.shape[-1]))
