"""Arrays in ``.npy`` files, and what all files of numbers are checked for. Nothing is unpickled."""

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

from exitlens.errors import DataError

MOST_VALUES = 250_000_000  # of one file: 1 GB as float32
MOST_BYTES = 1_000_000_000  # of one file


@contextmanager
def open_regular(path: Path, name: str) -> Iterator[BinaryIO]:
    """A file's bytes; a :class:`DataError` that begins with ``name`` for what cannot be opened, devices and huge files."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{name}: it is no file: give a file, or a folder of class folders to train on")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise DataError(f"{name}: it has more than {MOST_BYTES:,} bytes: cut it into samples of their own files")
            yield file
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {error.strerror or error})") from error


def check_count(shape: Sequence[int], name: str) -> None:
    """Raises :class:`DataError` for a shape of no value, or of more than :data:`MOST_VALUES`: before anything is read."""
    count = math.prod(shape)
    if min(shape, default=1) <= 0:
        raise DataError(f"{name}: it is empty (shape {tuple(shape)}): leave it out")
    if count > MOST_VALUES:
        raise DataError(f"{name}: {count:,} values are over the limit of {MOST_VALUES:,}: cut it into shorter samples")


def read_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of a ``.npy`` file, by its header alone; raises :class:`DataError` as :func:`read_npy`."""
    with open_regular(path, name) as file:
        return _read_header(file, name)[0]


def read_npy(path: Path, name: str) -> Any:  # -> float32 array
    """The numbers of a ``.npy`` file; its header is checked before they are read.

    Raises:
        DataError: no such file, another format, objects or complex numbers, a truncated file, or one that is too large.
    """
    with open_regular(path, name) as file:
        shape, fortran, dtype = _read_header(file, name)
        count, start = math.prod(shape), file.tell()
        left = os.fstat(file.fileno()).st_size - start
        if left < count * dtype.itemsize:
            wanted = count * dtype.itemsize
            raise DataError(f"{name}: it is truncated: {left:,} of {wanted:,} bytes are there: copy it again")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is infinite, and refused as such
            values = np.fromfile(file, dtype, count).astype(np.float32, copy=False)
    return values.reshape(shape, order="F" if fortran else "C")


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the first axis is the fastest, and dtype: of real numbers, one or more, and not too many."""
    form = np.lib.format
    try:
        version = form.read_magic(file)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0  # 3.0 is 2.0 in UTF-8
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy lets errors of Python's tokenizer and parser through
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: it is no .npy file, or a damaged one ({said}): write it by numpy.save") from error
    if dtype.kind not in "biuf":
        raise DataError(f"{name}: it holds {dtype}, expected real numbers: save it as float32")
    check_count(shape, name)
    return tuple(map(int, shape)), bool(fortran), dtype


def check_finite(values: Tensor, name: str, channels: Sequence[str] = ()) -> None:  # (C,*S)
    """Raises :class:`DataError` for the first gap (NaN) or infinite value, with its place and how to mend it."""
    if bool(torch.isfinite(values).all()):
        return
    channel, *at = (~torch.isfinite(values)).nonzero()[0].tolist()
    owner = repr(channels[channel]) if channels else str(channel)
    place = (f"step {at[0]} of " if len(at) == 1 else f"voxel {tuple(at)} of ") if at else ""
    place = f"at {place}channel {owner}" if at else f"for feature {owner}"
    what = "a gap (NaN)" if bool(torch.isnan(values[(channel, *at)])) else "an infinite value"
    fill = {0: "the training data's mean or median", 1: "numpy.interp or pandas.DataFrame.interpolate"}
    raise DataError(f"{name}: {what} {place}: fill it first (by {fill.get(len(at), 'its neighbours')}), or leave it out")
