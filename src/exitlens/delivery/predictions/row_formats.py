"""Predictions as rows of CSV, JSON lines and Parquet, and where the complete rows of an interrupted file end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from exitlens.data.streams import SampleStream
from exitlens.errors import InputError, MissingExtraError
from exitlens.io import replace_atomically
from exitlens.model.network import ExitNet
from exitlens.types import Prediction
from exitlens.types.tasks import name_answers


class Row(NamedTuple):
    """One answer: the file (or ``file:line``), the class (or ``a;b``, the labels), the exit and its confidence.

    Under a gated policy also the estimated divergence of that exit's attention map from the final one.
    """

    file: str
    label: str
    exit: int
    confidence: float
    divergence_estimate: float | None = None


def name_rows(net: ExitNet, predictions: Iterable[Prediction], samples: SampleStream) -> Iterator[list[Row]]:
    """Turns predictions into rows with the names of their samples, which may have been read further ahead."""
    count = 0
    for pred in predictions:
        names = map(str, samples.files[count : count + len(pred)])
        labels = name_answers(pred.labels, net.info.classes)
        sure = [round(value, 6) for value in pred.confidence.tolist()]
        estimates: list[float | None] = [None] * len(pred)
        if pred.divergence_estimate is not None:
            estimates = [round(value, 6) for value in pred.divergence_estimate.tolist()]
        yield [Row(*values) for values in zip(names, labels, pred.exits.tolist(), sure, estimates, strict=True)]
        count += len(pred)


class CsvFormat:
    """Comma-separated with a header; bytes of file names that are not UTF-8 are kept."""

    header = f"{','.join(Row._fields)}\r\n".encode()
    start = header.strip()  # of every file in this format

    def encode(self, rows: Iterable[Row]) -> bytes:
        """The rows as bytes of the file, a line for each."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        return text.getvalue().encode("utf-8", "surrogateescape")

    def count_whole(self, content: bytes) -> int:
        """How many bytes of an interrupted file hold complete rows: up to the last end of a line outside quotes."""
        end = content.rfind(b"\n") + 1
        while end and content.count(b'"', 0, end) % 2:
            end = content.rfind(b"\n", 0, end - 1) + 1
        return end

    def decode(self, content: bytes) -> list[Row]:
        """Inverse of :meth:`encode`, after the header; raises ``ValueError`` for what does not fit."""
        text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
        try:
            head, *lines = csv.reader(text, strict=True)
        except csv.Error as error:
            raise ValueError(f"broken CSV: {error}") from error
        if tuple(head) != Row._fields:
            raise ValueError(f"its columns are {head}")
        return [_row(line, i) for i, line in enumerate(lines, 1)]


class JsonLinesFormat:
    """A JSON object on each line."""

    header = b""
    start = b'{"file": '

    def encode(self, rows: Iterable[Row]) -> bytes:
        """An object for each row, in ASCII."""
        return "".join(json.dumps(row._asdict()) + "\n" for row in rows).encode()

    def count_whole(self, content: bytes) -> int:
        """How many bytes of an interrupted file hold complete rows: up to the last end of a line."""
        return content.rfind(b"\n") + 1

    def decode(self, content: bytes) -> list[Row]:
        """Inverse of :meth:`encode`; raises ``ValueError`` for what does not fit."""
        rows = []
        for i, line in enumerate(content.splitlines(), 1):
            values = json.loads(line)
            if not isinstance(values, dict) or tuple(values) != Row._fields:
                raise ValueError(f"its row {i} has {list(values) if isinstance(values, dict) else values!r:.60}")
            rows.append(_row(values.values(), i))
        return rows


def _row(values: Collection[Any], number: int) -> Row:
    try:
        file, label, exit_, confidence, estimate = values
        known = None if estimate is None or estimate == "" else float(estimate)
        return Row(str(file), str(label), int(exit_), float(confidence), known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its row {number} is {list(values)!r:.80}") from error


def import_pyarrow() -> Any:
    """The optional package ``pyarrow`` with its module ``parquet``, or :class:`MissingExtraError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "an output file .parquet") from error
    return pyarrow


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Writes all rows, atomically; bytes of file names that are not UTF-8 become ``\\udcXX``."""
    arrow = import_pyarrow()
    kinds = (arrow.string(), arrow.string(), arrow.int64(), arrow.float64(), arrow.float64())
    schema = arrow.schema(list(zip(Row._fields, kinds, strict=True)))
    values = [row._replace(file=_utf8(row.file), label=_utf8(row.label))._asdict() for row in rows]
    with replace_atomically(path) as temporary, temporary.open("wb") as handle:
        arrow.parquet.write_table(arrow.Table.from_pylist(values, schema=schema), handle)


def read_parquet(path: Path) -> list[Row]:
    """Inverse of :func:`write_parquet`; ``ValueError`` says what does not fit."""
    arrow = import_pyarrow()
    try:
        with path.open("rb") as handle:
            table = arrow.parquet.ParquetFile(handle).read()
    except arrow.ArrowInvalid as error:
        raise ValueError(str(error)) from error
    if tuple(table.column_names) != Row._fields:
        raise ValueError(f"its columns are {table.column_names}")
    return [_row(values.values(), i) for i, values in enumerate(table.to_pylist(), 1)]


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def check_suffix(path: Path) -> str:
    """The suffix in lower case; raises :class:`InputError` unless it names one of the three formats."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise InputError(f"out: expected a file .csv, .jsonl or .parquet, got {path}: choose one of these suffixes")
    return suffix
