"""A file of predictions that grows batch by batch, holds whole rows at every moment, and can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from exitlens.delivery.predictions.row_formats import (
    CsvFormat,
    JsonLinesFormat,
    Row,
    check_suffix,
    import_pyarrow,
    read_parquet,
    write_parquet,
)
from exitlens.errors import DataError, ExitlensError, OutputError, OutputExistsError
from exitlens.io import replace_atomically, write_json


class PredictionFile:
    """A table with a row for each sample, appended batch by batch, which a later run can continue after an interruption.

    While the run lasts, ``.NAME.run.json`` beside the file records what made the rows, and the rows of a ``.parquet`` file,
    which cannot be appended to, are kept in ``.NAME.partial.jsonl``; :meth:`finish` removes both. Leaving the context
    manager without :meth:`finish` cuts off a row that was only partly written, writes the ``.parquet`` file of the rows so
    far, and adds their number to the exception.

    Args:
        path: a file ``.csv``, ``.jsonl`` or ``.parquet``; nothing is written before the first row.
        made_by: JSON-ready values by name, which must be the same when a run is resumed.
        resume: continue after the rows that the file holds.

    Attributes:
        rows: what the file held at the start.
        count: how many rows it holds now.

    Raises:
        InputError: another suffix; MissingExtraError: ``.parquet`` without pyarrow; OutputExistsError: the file exists (with
            ``resume``: it holds something else, or was made by something else); OutputError: it cannot be read.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], *, resume: bool = False) -> None:
        suffix = check_suffix(path)
        self._is_parquet = suffix == ".parquet"
        if self._is_parquet:
            import_pyarrow()
        self.path = path
        self.rows: list[Row] = []
        self._format: CsvFormat | JsonLinesFormat = CsvFormat() if suffix == ".csv" else JsonLinesFormat()
        self._lines = path.with_name(f".{path.name}.partial.jsonl") if self._is_parquet else path
        self._place = self._lines  # where the rows are
        self._record = path.with_name(f".{path.name}.run.json")
        self._made_by = json.loads(json.dumps(made_by))
        self._handle: BinaryIO | None = None
        self._ours = False  # this run, or the one it continues, wrote the lines
        self._sealed = False  # nothing records what made the rows
        self._finished = False
        self._more = ""  # what the command needs beside --resume, not to stop at the same place
        try:
            if resume:
                self._reopen()
            else:
                self._check_new()
        except OSError as error:
            raise OutputError(f"out: {path} cannot be read ({_reason(error)}): choose another file") from error
        self.count = len(self.rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows; once it returns, they are with the operating system and survive this process.

        Raises:
            OutputExistsError: the file was complete, so nothing records what made its rows; OutputError: the rows cannot be
                written (a full disk); earlier ones are safe.
        """
        if rows and self._sealed:
            raise OutputExistsError(
                f"out: {self.path} is complete, or lost its record {self._record.name}, and lacks {rows[0].file}: choose "
                f"another file for what is new"
            )
        try:
            if rows:
                self._write(self._format.encode(rows))
        except OSError as error:
            raise self._failure(error) from error
        self.count += len(rows)

    def finish(self) -> None:
        """Completes the run: writes the ``.parquet`` file and removes what only :meth:`append` and resuming need.

        Raises:
            OutputError: it cannot be written; the rows are safe.
        """
        try:
            if self._handle is not None:
                os.fsync(self._handle.fileno())
                self._handle.close()
                self._handle = None
            if self._ours and self._is_parquet:
                write_parquet(self.path, self._read_lines())
                self._lines.unlink()
            if not self._sealed:
                self._record.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        self._finished = True

    @property
    def note(self) -> str:
        """How many rows there are, and how to continue."""
        if self._sealed or not self.count:
            return f"no row was written to {self.path}"
        return f"{self.count} rows are in {self._place}: the same command with --resume{self._more} goes on"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._finished or isinstance(error, OutputError | OutputExistsError):
            return
        self._stop()
        if error is not None:
            self._more = " --skip-bad" if isinstance(error, DataError) and error.is_skippable else ""
            error.add_note(self.note)

    def _check_new(self) -> None:
        if self.path.exists():
            mend = "choose another file, or pass --resume to go on with a run that was stopped"
            raise OutputExistsError(f"out: {self.path} exists: {mend}")
        if self._lines.exists():
            mend = "pass --resume to go on with it, or remove that file"
            raise OutputExistsError(f"out: a run that was stopped left its rows in {self._lines}: {mend}")

    def _reopen(self) -> None:
        if not self.path.exists() and not self._lines.exists():
            return
        self._ours = self._record.exists()
        self._sealed = not self._ours
        if self._ours:
            self._check_made_by()
        if self._lines.exists():
            self.rows = self._read_lines()
            return
        self.rows = self._decode_or_refuse(self.path, lambda: read_parquet(self.path))
        if self._ours:  # stopped while it was finishing
            with replace_atomically(self._lines) as temporary:
                temporary.write_bytes(self._format.encode(self.rows))

    def _check_made_by(self) -> None:
        before = self._decode_or_refuse(self._record, lambda: json.loads(self._record.read_text()))
        for name, now in self._made_by.items():
            then = before.get(name) if isinstance(before, dict) else None
            if then != now:
                raise OutputExistsError(
                    f"out: {self.path} was begun with another {name} ({json.dumps(then):.100}, now {json.dumps(now):.100}): "
                    f"resume it with the same, or choose another file"
                )

    def _read_lines(self) -> list[Row]:
        """The complete rows; of a file that is ours, anything after them is cut off."""
        content, start = self._lines.read_bytes(), self._format.start
        if content[: len(start)] != start[: len(content)]:
            raise OutputExistsError(
                f"out: {self._lines} is no file of predictions (expected {','.join(Row._fields)}; it begins with "
                f"{content[: len(start)]!r}): choose another file"
            )
        end = self._format.count_whole(content) if self._ours else len(content)
        rows = self._decode_or_refuse(self._lines, lambda: self._format.decode(content[:end])) if end else []
        if end < len(content):
            os.truncate(self._lines, end)
        return rows

    def _decode_or_refuse(self, path: Path, decode: Callable[[], Any]) -> Any:
        try:
            return decode()
        except ValueError as error:
            raise OutputExistsError(f"out: {path} is damaged or not of this form ({error}): choose another file") from error

    def _write(self, content: bytes) -> None:
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._record, self._made_by)
            self._handle = open_lines(self._lines, new=not self._ours)
            self._ours = True
        rest = memoryview(content if self._handle.tell() else self._format.header + content)
        while rest:
            rest = rest[self._handle.write(rest) :]

    def _failure(self, error: OSError) -> OutputError:
        self._stop()
        return OutputError(f"out: {self.path} cannot be written ({_reason(error)}): mend that; {self.note}")

    def _stop(self) -> None:
        """Leaves the file closed and valid, as far as the disk lets it."""
        with suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        self._handle = None
        if not self._ours or self._sealed:
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
    """Opens a file to append to without a buffer: what is written is in the file at once."""
    return path.open("xb" if new else "ab", buffering=0)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
