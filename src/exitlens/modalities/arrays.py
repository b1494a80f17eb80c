"""Arrays in ``.npy`` files, and the checks that every file of numbers has to pass. Nothing is unpickled."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import DataError, first_line

MOST_VALUES = 250_000_000  # limit for one file: 1 GB as float32
MOST_BYTES = 1_000_000_000  # limit for one file


@contextmanager
def open_regular(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file that is neither a device nor huge; the :class:`DataError` for any other begins with ``name``."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(
                f"{name}: not a file but a folder, device or pipe. Fix: give a file, or class folders to train on"
            )
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise DataError(f"{name}: it has more than {MOST_BYTES:,} bytes. Fix: give each sample a file of its own")
            yield file
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {error.strerror or error})") from error


def check_count(shape: Sequence[int], name: str) -> None:
    """Refuse an empty array, or one of more than :data:`MOST_VALUES`, before anything is read."""
    count = math.prod(shape)
    if min(shape, default=1) <= 0:
        raise DataError(f"{name}: it is empty (shape {tuple(shape)}). Fix: leave it out")
    if count > MOST_VALUES:
        raise DataError(f"{name}: {count:,} values are over the limit of {MOST_VALUES:,}. Fix: cut it into shorter samples")


def read_shape(path: Path, name: str) -> tuple[int, ...]:
    """Return the shape that the header of a ``.npy`` file states."""
    with open_regular(path, name) as file:
        return _read_header(file, name)[0]


def read_npy(path: Path, name: str) -> Any:  # -> float32 array
    """Read the numbers of a ``.npy`` file, whose header is checked first."""
    with open_regular(path, name) as file:
        shape, fortran, dtype = _read_header(file, name)
        count, start = math.prod(shape), file.tell()
        present, expected = os.fstat(file.fileno()).st_size - start, count * dtype.itemsize
        if present < expected:
            raise DataError(f"{name}: it is truncated: {present:,} of {expected:,} bytes are there. Fix: copy it again")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            values = np.fromfile(file, dtype, count).astype(np.float32, copy=False)
    return values.reshape(shape, order="F" if fortran else "C")


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, Any]:
    """Return shape, Fortran order and dtype of an array of real numbers."""
    form: Any = np.lib.format  # its functions have no types in some releases of NumPy
    try:
        version = form.read_magic(file)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0  # 3.0 is 2.0 in UTF-8
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy lets errors of Python's tokenizer and parser through
        reason = first_line(error)
        raise DataError(f"{name}: not a .npy file, or a damaged one ({reason}). Fix: write it with numpy.save") from error
    if dtype.kind not in "biuf":
        raise DataError(f"{name}: it holds {dtype}, expected real numbers. Fix: save it as float32")
    check_count(shape, name)
    return tuple(map(int, shape)), bool(fortran), dtype


def check_finite(values: Tensor, name: str, channels: Sequence[str] = ()) -> None:  # (C,*S)
    """Raise a :class:`DataError` for NaN and infinite values, see :func:`find_gap`."""
    if fault := find_gap(values, channels):
        raise DataError(f"{name}: {fault}")


def find_gap(values: Tensor, channels: Sequence[str] = ()) -> str:  # (C,*S)
    """Say where the first NaN or infinite value is and what can replace it; nothing if all values are finite."""
    if bool(torch.isfinite(values).all()):
        return ""
    channel, *at = (~torch.isfinite(values)).nonzero()[0].tolist()
    owner = repr(channels[channel]) if channels else str(channel)
    place = (f"step {at[0]} of " if len(at) == 1 else f"voxel {tuple(at)} of ") if at else ""
    place = f"at {place}channel {owner}" if at else f"for feature {owner}"
    what = "a gap (NaN)" if bool(torch.isnan(values[(channel, *at)])) else "an infinite value"
    fill = {0: "the training data's mean or median", 1: "numpy.interp or pandas.DataFrame.interpolate"}
    return f"{what} {place}. Fix: fill it by {fill.get(len(at), 'its neighbours')}, or leave it out"


def pick_rows(values: Tensor, names: Sequence[str], wanted: Sequence[str], problem: str) -> Tensor:  # (C,*S) -> (C',*S)
    """Return the rows called ``wanted``, in that order, or all if either side has no names; ``problem`` begins the error."""
    if not names or not wanted:
        return values
    for row in wanted:
        if row not in names:
            raise DataError(f"{problem} {row!r} among {list(names)}. Fix: name columns as in training")
    return values[[names.index(row) for row in wanted]]
