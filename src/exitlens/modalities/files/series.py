"""Series in files: ``.npy``, and ``.csv`` and Parquet whose rows are steps and whose columns are channels; and sounds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import DataError, import_extra, is_installed
from exitlens.modalities.files.arrays import check_count, check_finite, open_regular, read_npy
from exitlens.modalities.files.audio import SOUND_FILES, make_spectrogram, read_sound
from exitlens.types.scaling import MelSpectrogram, SeriesPreprocess

SERIES_FILES = (".npy", ".csv", ".parquet", *SOUND_FILES)
CLOCKS = ("time", "timestamp", "datetime", "date", "", "__index_level_0__")  # columns that say when, and are no channels


class RawSeries(NamedTuple):
    """A series as its file has it: ``values (C,T)`` ``float32``, names of channels or none, samples a second or 0."""

    values: Tensor
    names: tuple[str, ...] = ()
    rate: float = 0.0


def decode_series(path: Path, name: str = "") -> RawSeries:
    """Decodes one file.

    Args:
        path: its suffix says the format. In ``.npy`` there is ``(T,)`` or ``(C,T)``; in tables a column for each channel,
            and columns called ``time``, ``timestamp``, ``datetime`` or ``date`` are left out.
        name: of the file, for errors; by default its path.

    Raises:
        DataError: for a file that is missing, damaged, empty, too large, ragged, not of numbers, or that has gaps.
        MissingExtraError: for a format whose package is not installed.
    """
    name, suffix = name or str(path), path.suffix.lower()
    if suffix in SOUND_FILES:
        values, rate = read_sound(path, name)
        return RawSeries(values, (), rate)
    if suffix == ".npy":
        found = read_npy(path, name)
        if found.ndim not in (1, 2):
            raise DataError(f"{name}: expected an array (T,) or (C,T), got {found.shape}: a file holds one series")
        raw = RawSeries(torch.from_numpy(found.reshape(-1, found.shape[-1])))
    elif suffix in (".csv", ".parquet"):
        table, names = read_table(path, name)
        raw = RawSeries(torch.from_numpy(np.ascontiguousarray(table.T)), names)
    else:
        raise DataError(f"{name}: it is no series: expected {', '.join(SERIES_FILES)}")
    check_finite(raw.values, name, raw.names)
    return raw


def read_series(path: Path, preprocess: SeriesPreprocess, name: str = "") -> Tensor:  # -> (C,T) float32
    """A file's series with the channels, the spectrogram and the length that ``preprocess`` says, not yet normalised.

    Raises:
        DataError: as :func:`decode_series`; other channels, or another sampling rate.
    """
    name = name or str(path)
    return arrange_series(decode_series(path, name), preprocess, name)


def arrange_series(raw: RawSeries, preprocess: SeriesPreprocess, name: str) -> Tensor:  # -> (C,T) float32
    """See :func:`read_series`."""
    if preprocess.rate and raw.rate and raw.rate != preprocess.rate:
        raise DataError(
            f"{name}: its sampling rate is {raw.rate:g} Hz, the network's {preprocess.rate:g} Hz: resample it first, for "
            f"example by ffmpeg -i IN -ar {preprocess.rate:g} OUT, or scipy.signal.resample_poly"
        )
    if preprocess.mel is not None:
        return make_spectrogram(raw.values, preprocess.mel, preprocess.rate, preprocess.length, name)
    values = _pick_channels(raw, preprocess, name)
    return fit_length(values, preprocess.length) if preprocess.length else values


def fit_length(values: Tensor, length: int) -> Tensor:  # (..., T) -> (..., length)
    """Cut at the end, or filled with zeros there."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))


def describe_raw(raw: RawSeries, length: int, mel: MelSpectrogram | None) -> SeriesPreprocess:
    """How series such as this one become inputs, before mean and standard deviation are known (0 and 1)."""
    channels = len(raw.values) if mel is None else mel.bands
    names = raw.names if mel is None else ()
    return SeriesPreprocess((0.0,) * channels, (1.0,) * channels, length=length, rate=raw.rate, names=names, mel=mel)


def _pick_channels(raw: RawSeries, preprocess: SeriesPreprocess, name: str) -> Tensor:
    wanted = len(preprocess.mean)
    if preprocess.names and raw.names:
        missing = [one for one in preprocess.names if one not in raw.names]
        if missing:
            raise DataError(
                f"{name}: it has no channel {missing[0]!r}, but {list(raw.names)}: name the columns as in training"
            )
        return raw.values[[raw.names.index(one) for one in preprocess.names]]
    if len(raw.values) != wanted:
        turned = ": transpose it, channels come first" if raw.values.shape[1] == wanted else ""
        raise DataError(f"{name}: expected {wanted} channel(s) as in training, got {len(raw.values)}{turned}")
    return raw.values


def read_table(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    """The numbers of a table ``(rows, columns)`` ``float32``, without columns that say when, and the columns' names.

    Raises:
        DataError: columns of words, rows of different length, no rows, or a file that cannot be read.
    """
    values, names = _read_parquet(path, name) if path.suffix.lower() == ".parquet" else _read_csv(path, name)
    if not names:
        return values, ()
    kept = [i for i, one in enumerate(names) if one.lower() not in CLOCKS]
    if not kept:
        raise DataError(f"{name}: it has no channels, only {list(names)}: give a column of numbers for each")
    return values[:, kept], tuple(names[i] for i in kept)


def _read_csv(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    """All columns, zeros for those that say when; no names where the first line has numbers."""
    with open_regular(path, name) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "replace", newline="")
        head = [one.strip() for one in next((row for row in csv.reader(text) if row), [])]
        named = any(one and not is_number(one) for one in head)
        if named and len(set(head)) < len(head):
            raise DataError(f"{name}: two columns have one name: {head}: rename one")
        text.seek(0)
        lines = (line for line in text if line.strip())
        first = [*islice(lines, named + 1)]  # numpy warns of none
        if len(first) <= named:
            raise DataError(f"{name}: it is empty{', but for its first line' if named else ''}: leave it out")
        clocks = {i: _say_zero for i, one in enumerate(head) if named and one.lower() in CLOCKS}
        how: Any = {"comments": None, "delimiter": ",", "quotechar": '"', "ndmin": 2, "converters": clocks}
        try:
            found = np.loadtxt(chain(first[named:], lines), np.float64, **how)
        except (ValueError, IndexError):
            _explain_csv(path, head, named, name)
    if named and found.shape[1] != len(head):
        _explain_csv(path, head, named, name)
    with np.errstate(over="ignore", invalid="ignore"):
        return found.astype(np.float32), tuple(head) if named else ()


def _say_zero(_: str | bytes) -> float:
    return 0.0


def _explain_csv(path: Path, head: Sequence[str], named: bool, name: str) -> NoReturn:
    """Says which line is ragged, or which field is no number: numpy says it by the number of the row alone."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        for line, row in islice(((reader.line_num, row) for row in reader if row), named, None):
            if len(row) != len(head):
                raise DataError(
                    f"{name}, line {line}: {len(row)} fields, the first line has {len(head)}: every column needs one"
                )
            for column, field in zip(head if named else map(str, range(len(row))), row, strict=True):
                if named and column.lower() in CLOCKS:
                    continue
                if not field.strip():
                    fill = "fill it first (by numpy.interp or pandas.DataFrame.interpolate), or leave it out"
                    raise DataError(f"{name}, line {line}: a gap for column {column!r}: {fill}")
                if not is_number(field):
                    raise DataError(f"{name}, line {line}: expected a number for column {column!r}, got {field!r:.40}")
    raise DataError(f"{name}: it is no table of numbers with commas between them: save it as CSV")


def is_number(text: str) -> bool:
    """Whether a word is a number, NaN and infinite ones included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    package = import_extra("pyarrow.parquet", "parquet", f"reading {name}")
    with open_regular(path, name) as file:
        try:
            table = package.ParquetFile(file)
            rows, names = table.metadata.num_rows, tuple(table.schema_arrow.names)
            kinds = [str(one) for one in table.schema_arrow.types]
            for one, kind in zip(names, kinds, strict=True):
                if not _is_numeric(kind) and one.lower() not in CLOCKS:
                    raise DataError(f"{name}: its column {one!r} has {kind}, expected numbers: leave it out of the file")
            check_count((rows, len(names)), name)
            kept = [one for one, kind in zip(names, kinds, strict=True) if _is_numeric(kind)]
            with np.errstate(over="ignore", invalid="ignore"):
                columns = [table.read([one]).column(0).to_numpy().astype(np.float32) for one in kept]
            values = np.stack(columns, 1) if columns else None
        except DataError:
            raise
        except Exception as error:  # pyarrow raises many kinds
            said = str(error).splitlines()[0] if str(error) else ""
            raise DataError(f"{name}: cannot be read as Parquet ({type(error).__name__}: {said})") from error
    if values is None:
        raise DataError(f"{name}: it has no columns of numbers: give one for each channel")
    return values, tuple(kept)


def list_columns(path: Path) -> dict[str, bool]:
    """Of a Parquet file, whether each column has numbers or says when; empty where it cannot be read, or without pyarrow."""
    if not is_installed("pyarrow"):
        return {}
    schema = import_extra("pyarrow.parquet", "parquet", f"reading {path}").read_schema
    try:
        found = schema(path)
    except Exception:  # pyarrow raises many kinds; whoever reads the file says what is wrong
        return {}
    return {
        name: _is_numeric(str(kind)) or name.lower() in CLOCKS for name, kind in zip(found.names, found.types, strict=True)
    }


def _is_numeric(kind: str) -> bool:
    return kind.startswith(("int", "uint", "float", "double", "halffloat", "bool"))
