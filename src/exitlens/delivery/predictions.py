"""Files of predictions (CSV, JSON lines, Parquet) that grow batch by batch, hold whole rows at every moment, and resume."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from exitlens.data.streams import SampleStream
from exitlens.delivery.pictures import draw_mask
from exitlens.errors import DataError, ExitlensError, InputError, OutputError, OutputExistsError, import_extra
from exitlens.functional.drift import DriftMonitor
from exitlens.io import RowStore, make_directory, replace_atomically, write_json
from exitlens.modalities.image import read_size
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Prediction
from exitlens.types.tasks import name_answers


class Row(NamedTuple):
    """An answer."""

    file: str  # or file:line
    label: str  # the class, or a;b, the labels or the classes of pixels
    exit: int
    confidence: float
    trust: float | None = None  # by a policy's gate, that the final exit would answer the same


def name_rows(
    net: ExitNet, predictions: Iterable[Prediction], samples: SampleStream, monitor: DriftMonitor | None = None
) -> Iterator[list[Row]]:
    """Turn predictions into rows with the names of their samples, which may be read further ahead; update the monitor."""
    count = 0
    for pred in predictions:
        part = slice(count, count + len(pred))
        if monitor is not None:
            monitor.update(pred, None if samples.groups is None else samples.groups[part])
        labels, exits = name_answers(pred.labels, net.info.classes), pred.exits.tolist()
        confidences = [round(value, 6) for value in pred.confidence.tolist()]
        trust = [None] * len(pred) if pred.trust is None else [round(value, 6) for value in pred.trust.tolist()]
        yield list(map(Row, map(str, samples.files[part]), labels, exits, confidences, trust))
        count += len(pred)


def write_masks(
    predictions: Iterable[Prediction], samples: SampleStream, data: Path, out: Path, *, before: Iterable[str] = ()
) -> Iterator[Prediction]:
    """Write the classes of the pixels of each image below ``out`` as a picture of indices, before its answer is passed on.

    It is called as :func:`place_mask` says, and has the size of the image's file, if it comes from one. A run that goes on
    after the images ``before`` replaces masks whose answers were not passed on, and no others.
    """
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"out: {out} lies in the folder of the images, {data}. Fix: choose a folder beside it.")
    written, count = {place_mask(file, data, out): file for file in before}, 0
    goes_on = bool(written)
    for pred in predictions:
        for file, labels in zip(map(str, samples.files[count : count + len(pred)]), pred.labels, strict=True):
            mask, path = place_mask(file, data, out), Path(file)
            if mask in written:
                both = f"{written[mask]} and of {file}"
                raise OutputError(f"out: {mask} would be the mask of {both}. Fix: rename one of them.")
            if mask.exists() and not goes_on:
                raise OutputExistsError(f"out: {mask} exists, for {file}. Fix: choose another folder.")
            written[mask] = file
            make_directory(mask.parent, "out")
            picture = draw_mask(labels, read_size(path) if path.is_file() else tuple(labels.shape))
            try:
                picture.save(mask)
            except OSError as error:
                raise OutputError(f"out: {mask} cannot be written ({_reason(error)}). Fix: make room there.") from error
        yield pred
        count += len(pred)


def keep_arrays(predictions: Iterable[Prediction], samples: SampleStream, out: Path) -> Iterator[Prediction]:
    """Pass answers on, and after the last one write a new NumPy file of them.

    A ``.npy`` file has numbers ``(N,)`` or ``(N,C)``, or vectors ``(N,D)``, in the order of the data; a ``.npz`` file has
    these as ``labels``, beside ``files``, ``exits`` and ``confidence`` ``(N,)``.
    """
    if out.exists():
        raise OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    store, count, names = RowStore(), 0, ("labels", "exits", "confidence")
    for pred in predictions:
        for name in names:
            store.add(name, getattr(pred, name))
        count += len(pred)
        yield pred
    if not count:
        return
    arrays: dict[str, Any] = {name: store.take(name).numpy() for name in names}
    make_directory(out.parent, "out")
    try:
        with replace_atomically(out) as temporary, temporary.open("wb") as handle:
            if out.suffix.lower() == ".npy":
                np.save(handle, arrays["labels"])
            else:
                np.savez(handle, files=np.array(list(map(str, samples.files[:count]))), **arrays)
    except OSError as error:
        raise OutputError(f"out: {out} cannot be written ({_reason(error)}). Fix: make room there.") from error


def place_mask(file: str, data: Path, out: Path) -> Path:
    """Return where below ``out`` the mask of a sample goes: it is called as the image is in the folder ``data``."""
    path = Path(file)
    name = path.relative_to(data) if data.is_dir() and path.is_relative_to(data) else Path(path.name)
    if ".." in name.parts:  # a member of an archive may be called anything
        name = Path(name.name)
    name = name.with_suffix("") if path.is_file() else name
    return out / f"{name}.png".replace(":", "-")  # table:row is no name of a file in Windows


def start_watch(policy: Policy, wanted: bool, group_by: str) -> DriftMonitor | None:
    """Return a drift monitor of the policy, if one is wanted; raise :class:`InputError` if ``group_by`` does not fit."""
    if not wanted:
        if group_by:
            raise InputError("group_by: it says what --monitor counts. Fix: pass --monitor, too, or leave it out.")
        return None
    monitor = DriftMonitor(policy)
    if policy.calibration is not None and policy.calibration.groups is not None and not group_by:
        raise InputError(
            "monitor: the calibration counted groups. Fix: say by --group-by which samples belong together (a column, or a "
            "regular expression on file names: its first parentheses, or all that it matches)."
        )
    return monitor


class _CsvFormat:
    """Comma-separated with a header; bytes of file names that are not UTF-8 are kept.

    In every format ``count_whole`` counts the bytes of an interrupted file that hold complete rows, and ``decode`` raises
    ``ValueError`` for what ``encode`` did not write.
    """

    header = f"{','.join(Row._fields)}\r\n".encode()
    start = header.strip()  # of every file in this format

    def encode(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        return text.getvalue().encode("utf-8", "surrogateescape")

    def count_whole(self, content: bytes) -> int:
        end = content.rfind(b"\n") + 1
        while end and content.count(b'"', 0, end) % 2:
            end = content.rfind(b"\n", 0, end - 1) + 1
        return end

    def decode(self, content: bytes) -> list[Row]:
        text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
        try:
            head, *lines = csv.reader(text, strict=True)
        except csv.Error as error:
            raise ValueError(f"broken CSV: {error}") from error
        if tuple(head) != Row._fields:
            raise ValueError(f"its columns are {head}")
        return [_parse_row(line, i) for i, line in enumerate(lines, 1)]


class _JsonLinesFormat:
    """A JSON object on each line, in ASCII."""

    header = b""
    start = b'{"file": '

    def encode(self, rows: Iterable[Row]) -> bytes:
        return "".join(json.dumps(row._asdict()) + "\n" for row in rows).encode()

    def count_whole(self, content: bytes) -> int:
        return content.rfind(b"\n") + 1

    def decode(self, content: bytes) -> list[Row]:
        rows = []
        for i, line in enumerate(content.splitlines(), 1):
            values = json.loads(line)
            if not isinstance(values, dict) or tuple(values) != Row._fields:
                raise ValueError(f"its row {i} has {list(values) if isinstance(values, dict) else values!r:.60}")
            rows.append(_parse_row(values.values(), i))
        return rows


def _parse_row(values: Collection[Any], number: int) -> Row:
    try:
        file, label, exit_, confidence, trust = values
        return Row(str(file), str(label), int(exit_), float(confidence), None if trust in (None, "") else float(trust))
    except (ValueError, TypeError) as error:
        raise ValueError(f"its row {number} is {list(values)!r:.80}") from error


def import_pyarrow() -> Any:
    """Import ``pyarrow`` with its module ``parquet``; raise :class:`MissingExtraError`."""
    arrow, _ = (import_extra(name, "parquet", "an output file .parquet") for name in ("pyarrow", "pyarrow.parquet"))
    return arrow


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows, atomically; bytes of file names that are not UTF-8 become ``\\udcXX``."""
    arrow = import_pyarrow()
    kinds = (arrow.string(), arrow.string(), arrow.int64(), arrow.float64(), arrow.float64())
    schema = arrow.schema(list(zip(Row._fields, kinds, strict=True)))
    values = [row._replace(file=_escape(row.file), label=_escape(row.label))._asdict() for row in rows]
    with replace_atomically(path) as temporary, temporary.open("wb") as handle:
        arrow.parquet.write_table(arrow.Table.from_pylist(values, schema=schema), handle)


def read_parquet(path: Path) -> list[Row]:
    """Inverse of :func:`write_parquet`; raises ``ValueError`` for other content."""
    arrow = import_pyarrow()
    try:
        with path.open("rb") as handle:
            table = arrow.parquet.ParquetFile(handle).read()
    except arrow.ArrowInvalid as error:
        raise ValueError(str(error)) from error
    if tuple(table.column_names) != Row._fields:
        raise ValueError(f"its columns are {table.column_names}")
    return [_parse_row(values.values(), i) for i, values in enumerate(table.to_pylist(), 1)]


def _escape(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class PredictionFile:
    """A table with a row for each sample, appended batch by batch, which a later run can continue after an interruption.

    While the run lasts, ``.NAME.run.json`` beside the file records what made the rows, and the rows of a ``.parquet`` file,
    which cannot be appended to, are kept in ``.NAME.partial.jsonl``; :meth:`finish` removes both. Leaving the context
    manager without :meth:`finish` cuts off a row that was only partly written, writes the ``.parquet`` file of the rows so
    far, and adds their number to the exception. Nothing is written before the first row.

    Args:
        path: a file ``.csv``, ``.jsonl`` or ``.parquet``.
        made_by: JSON-ready values by name, which must be the same when a run is resumed.
        resume: continue after the ``rows`` that the file held at the start.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], *, resume: bool = False) -> None:
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".jsonl", ".parquet"):
            raise InputError(
                f"out: expected a file .csv, .jsonl or .parquet, got {path}. Fix: choose one of these suffixes."
            )
        self._is_parquet = suffix == ".parquet"
        if self._is_parquet:
            import_pyarrow()
        self.path = path
        self.rows: list[Row] = []
        self._format: _CsvFormat | _JsonLinesFormat = _CsvFormat() if suffix == ".csv" else _JsonLinesFormat()
        self._lines = path.with_name(f".{path.name}.partial.jsonl") if self._is_parquet else path
        self._place = self._lines  # where the rows are
        self._record = path.with_name(f".{path.name}.run.json")
        self._made_by = json.loads(json.dumps(made_by))
        self._handle: BinaryIO | None = None
        self._ours = False  # this run, or the one it continues, wrote the lines
        self._sealed = False  # nothing records what made the rows
        self._finished = False
        if not resume and path.exists():
            raise OutputExistsError(
                f"out: {path} exists. Fix: choose another file, or pass --resume to go on with a run that was stopped."
            )
        if not resume and self._lines.exists():
            raise OutputExistsError(
                f"out: a run that was stopped left its rows in {self._lines}. "
                "Fix: pass --resume to go on with it, or remove that file."
            )
        try:
            self._reopen()
        except OSError as error:
            raise OutputError(f"out: {path} cannot be read ({_reason(error)}). Fix: choose another file.") from error
        self.count = len(self.rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; once it returns, they survive this process. If they cannot be written, earlier rows are safe."""
        if not rows:
            return
        if self._sealed:
            raise OutputExistsError(
                f"out: {self.path} is complete, or lost its record {self._record.name}, and lacks {rows[0].file}. "
                "Fix: choose another file for what is new."
            )
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._record, self._made_by)
                self._handle = open_lines(self._lines, new=not self._ours)
                self._ours = True
            header = b"" if self._handle.tell() else self._format.header
            rest = memoryview(header + self._format.encode(rows))
            while rest:
                rest = rest[self._handle.write(rest) :]
        except OSError as error:
            raise self._fail(error) from error
        self.count += len(rows)

    def finish(self) -> None:
        """Complete the run: write the ``.parquet`` file and remove what only resuming needs."""
        try:
            if self._handle is not None:
                os.fsync(self._handle.fileno())
                self._handle.close()
                self._handle = None
            if self._ours and self._is_parquet:
                write_parquet(self.path, self._read_lines())
                self._lines.unlink()
            self._record.unlink(missing_ok=True)
        except OSError as error:
            raise self._fail(error) from error
        self._finished = True

    def _describe_rows(self, options: str = "") -> str:
        """Say how many rows there are, and how to continue; ``options`` are those that keep it from stopping again."""
        if self._sealed or not self.count:
            return f"no row was written to {self.path}"
        return f"{self.count} rows are in {self._place}: the same command with --resume{options} goes on"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._finished or isinstance(error, OutputError | OutputExistsError):
            return
        self._stop()
        if error is not None:
            is_skippable = isinstance(error, DataError) and error.is_skippable
            error.add_note(self._describe_rows(" --skip-bad" if is_skippable else ""))

    def _reopen(self) -> None:
        """Read the rows of a run to resume, if there is one."""
        if not self.path.exists() and not self._lines.exists():
            return
        self._ours = self._record.exists()
        self._sealed = not self._ours
        record = self._decode(self._record, lambda: json.loads(self._record.read_text())) if self._ours else self._made_by
        for name, now in self._made_by.items():
            then = record.get(name) if isinstance(record, dict) else None
            if then != now:
                raise OutputExistsError(
                    f"out: {self.path} was begun with another {name} ({json.dumps(then):.100}, now {json.dumps(now):.100}). "
                    "Fix: resume it with the same, or choose another file."
                )
        if self._lines.exists():
            self.rows = self._read_lines()
            return
        self.rows = self._decode(self.path, lambda: read_parquet(self.path))
        if self._ours:  # it was stopped while it was finishing
            with replace_atomically(self._lines) as temporary:
                temporary.write_bytes(self._format.encode(self.rows))

    def _read_lines(self) -> list[Row]:
        """Read the complete rows; if the file is ours, anything after them is cut off."""
        content, start = self._lines.read_bytes(), self._format.start
        if content[: len(start)] != start[: len(content)]:
            raise OutputExistsError(
                f"out: expected a file of predictions ({','.join(Row._fields)}), got {self._lines}, which begins with "
                f"{content[: len(start)]!r}. Fix: choose another file."
            )
        end = self._format.count_whole(content) if self._ours else len(content)
        rows = self._decode(self._lines, lambda: self._format.decode(content[:end])) if end else []
        if end < len(content):
            os.truncate(self._lines, end)
        return rows

    def _decode(self, path: Path, decode: Callable[[], Any]) -> Any:
        try:
            return decode()
        except ValueError as error:
            raise OutputExistsError(
                f"out: {path} is damaged or not of this form ({error}). Fix: choose another file."
            ) from error

    def _fail(self, error: OSError) -> OutputError:
        self._stop()
        return OutputError(
            f"out: {self.path} cannot be written ({_reason(error)}). Fix: make room there; {self._describe_rows()}"
        )

    def _stop(self) -> None:
        """Leave the file closed and valid, as far as the disk lets it."""
        with suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        self._handle = None
        if not self._ours:
            return
        with suppress(OSError, ExitlensError):
            rows = self._read_lines()
            self.count = len(rows)
            if not rows:
                self._lines.unlink()
                self._record.unlink()
            elif self._is_parquet:
                self._place = self._lines
                write_parquet(self.path, rows)
                self._place = self.path


def open_lines(path: Path, new: bool) -> BinaryIO:
    """Open a file to append to without a buffer: what is written is in the file at once."""
    return path.open("xb" if new else "ab", buffering=0)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
