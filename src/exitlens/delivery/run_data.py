"""The record of a run's data, in its directory: where they come from, and whether what cannot be read is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exitlens.data.sources import NAMES, DataSource
from exitlens.delivery.bundle import find_bundle
from exitlens.errors import DataError, ExitlensError, OutputExistsError
from exitlens.io import write_json
from exitlens.ranks import ALONE, Ranks
from exitlens.workflow.training.record import SETTINGS

DATA, SKIP_BAD = "data.json", "skip_bad"


def write_source(out: Path, source: DataSource, *, resume: bool, skip_bad: bool = False) -> None:
    """Records a run's data in its directory before training starts, and whether what cannot be read is left out.

    Raises:
        OutputExistsError: if the directory is in use and ``resume`` is not set; DataError: if its run has other data.
    """
    path = out / DATA
    if out.exists() and any(out.iterdir()) and not resume:
        raise OutputExistsError(f"out: {out} exists and is not empty: choose another directory, or pass --resume")
    if path.exists() and _parse_record(path)[0] != source:
        raise DataError(
            f"data: {path} was made with other data: pass the same files (none added or removed), or another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, source.to_dict() | ({SKIP_BAD: True} if skip_bad else {}))


@contextmanager
def record_source(
    out: Path, source: DataSource, *, resume: bool, skip_bad: bool = False, ranks: Ranks = ALONE
) -> Iterator[None]:
    """:func:`write_source`, undone if training fails before it writes anything: a corrected call can use ``out`` again.

    An error about a file that cannot be read says how to go on, where training has begun.
    """
    ranks.share(lambda: write_source(out, source, resume=resume, skip_bad=skip_bad))
    try:
        yield
    except ExitlensError as error:
        if isinstance(error, DataError) and error.is_skippable and (out / SETTINGS).exists():
            error.add_note(f"the run so far is in {out}: the same command with --resume --skip-bad goes on")
        if ranks.is_first and [path.name for path in out.iterdir()] == [DATA]:
            (out / DATA).unlink()
            out.rmdir()
        raise


def read_source(path: Path) -> DataSource:
    """Reads which data a run directory or bundle was trained on; without a readable record, raises :class:`DataError`."""
    return _read_record(path)[0]


def remembers_skipping(path: Path, data: str = "") -> bool:
    """Whether a run left out what could not be read of its data; false for other ``data``, and where nothing is recorded."""
    try:
        source, skipped = _read_record(path)
    except ExitlensError:
        return False
    return skipped and (
        data in ("", source.name) or (data not in NAMES and Path(data).resolve() == Path(source.name).resolve())
    )


def _read_record(path: Path) -> tuple[DataSource, bool]:
    record = path / DATA
    if not record.is_file():
        record = find_bundle(path).parent / DATA
    if record.is_file():
        return _parse_record(record)
    raise DataError(f"data: {path} does not say which data it was trained on: pass --data")


def _parse_record(path: Path) -> tuple[DataSource, bool]:
    """The data, and whether what cannot be read of them is left out: false in records that do not say it."""
    try:
        record = json.loads(path.read_text())
        return DataSource(**{name: value for name, value in record.items() if name != SKIP_BAD}), record.get(
            SKIP_BAD
        ) is True
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}): pass --data") from error
