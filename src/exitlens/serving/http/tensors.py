"""Tensors as the Open Inference Protocol sends them: numbers and strings in JSON, or their bytes behind it.

Binary data is little-endian and row-major without padding; each element of BYTES comes after its length in 4 bytes.
Source: https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from reprlib import repr as shorten
from typing import Any

import numpy as np
import numpy.typing as npt

from exitlens.errors import InputError, RequestError

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_ELEMENTS: dict[str, tuple[set[type], str]] = {  # what JSON data are made of; integers unless named here
    "BOOL": ({bool}, "true and false"),
    "FP32": ({int, float}, "numbers"),
    "FP64": ({int, float}, "numbers"),
    "BYTES": ({str}, "strings"),
}
_JSON_NAMES = {bool: "true or false", int: "integers", float: "floats", str: "strings", list: "arrays", dict: "objects"}
_LENGTH = struct.Struct("<I")


def read_json_data(data: object, datatype: str, shape: tuple[int, ...], where: str) -> Array:  # -> (*shape)
    """The tensor of JSON data that are flat, in row-major order, or nested as ``shape`` says.

    Raises :class:`RequestError`, which names the tensor ``where``, for data of another number or type, or out of range.
    """
    if datatype == "FP16":
        raise RequestError(f"{where}.data: FP16 has no form in JSON: send it as binary data, or as FP32")
    elements, count = _flatten(data, shape, where), math.prod(shape)
    if len(elements) != count:
        raise RequestError(
            f"{where}.data: expected {count} elements for the shape {list(shape)}, got {len(elements)}: send a shape that "
            "fits the data, flat or nested"
        )
    kinds, words = _ELEMENTS.get(datatype, ({int}, "integers"))
    if wrong := set(map(type, elements)) - kinds:
        got = ", ".join(sorted(_JSON_NAMES.get(kind, "null") for kind in wrong))
        raise RequestError(
            f"{where}.data: expected {words} for {datatype}, got {got}: send another datatype, or mend the data"
        )
    return _convert(elements, datatype, where).reshape(shape)


def _flatten(data: object, shape: tuple[int, ...], where: str) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(
            f"{where}.data: expected an array, got {shorten(data)}: send one, flat or nested as the shape says"
        )
    if not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if not (set(map(type, level)) <= {list} and set(map(len, level)) <= {size}):
            raise RequestError(
                f"{where}.data: expected arrays of {size} at depth {axis} for the shape {list(shape)}, got others: nest the "
                "data as the shape says, or send them flat"
            )
        level = list(chain.from_iterable(level))
    return level


def _convert(elements: list[Any], datatype: str, where: str) -> Array:
    """JSON elements of the right type ``(n)``."""
    dtype = DATATYPES[datatype]
    try:
        if datatype == "BYTES":
            array = np.empty(len(elements), object)
            array[:] = [text.encode() for text in elements]
            return array
        if dtype.kind in "iu" and elements:
            limits = np.iinfo(dtype)
            if min(elements) < limits.min or max(elements) > limits.max:
                raise OverflowError
        with np.errstate(over="ignore"):
            array = np.fromiter(elements, dtype, len(elements))
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}.data: a string is no valid Unicode ({error.reason}): send it as binary data") from error
    except OverflowError as error:
        raise RequestError(f"{where}.data: a number is out of the range of {datatype}: send a wider datatype") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{where}.data: a number is out of the range of {datatype}: send a wider datatype")
    return array


def read_binary_data(data: memoryview, datatype: str, shape: tuple[int, ...], where: str) -> Array:  # -> (*shape)
    """The tensor of binary data: a view of them, read-only where they are; a copy where they are not aligned, or BYTES.

    Numbers that are not finite come through. Raises :class:`RequestError`, which names the tensor ``where``, for data of
    another size, and for a BOOL that is neither 0 nor 1.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _read_strings(data, count, where).reshape(shape)
    dtype = DATATYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"{where}.parameters.binary_data_size: expected {count * dtype.itemsize} for {datatype} of the shape "
            f"{list(shape)}, got {len(data)}: send the bytes of every element and no others"
        )
    if count == 0:
        return np.empty(shape, dtype)
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(f"{where}: expected bytes of 0 and 1 for BOOL, got others: send UINT8, or mend the data")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _read_strings(data: memoryview, count: int, where: str) -> Array:  # -> (count)
    found, start, end = [], 0, len(data)
    for i in range(count):
        size = _LENGTH.unpack_from(data, start)[0] if start + 4 <= end else end
        if start + 4 + size > end:
            raise RequestError(
                f"{where}: expected {count} elements of BYTES, each after its length in 4 bytes, got data that end in "
                f"element {i}: send them whole"
            )
        found.append(bytes(data[start + 4 : start + 4 + size]))
        start += 4 + size
    if start != end:
        raise RequestError(
            f"{where}: {end - start} bytes are left after {count} elements of BYTES: send a shape that fits the data"
        )
    array = np.empty(count, object)
    array[:] = found
    return array


def name_datatype(array: Array, where: str) -> str:
    """The protocol's name for the dtype of an array; strings and objects are BYTES.

    Raises :class:`InputError`, which names the array ``where``, for a dtype that the protocol does not have.
    """
    if array.dtype.kind in "USO":
        return "BYTES"
    if (dtype := array.dtype.newbyteorder("<")) in _NAMES:
        return _NAMES[dtype]
    raise InputError(f"{where}: expected an array of {', '.join(DATATYPES)}, got {array.dtype}: convert it")


def write_json_data(array: Array, where: str) -> list[Any]:
    """The elements in row-major order, as JSON has them.

    Raises :class:`InputError`, which names the array ``where``, for numbers that are not finite, FP16 and bytes that are no
    UTF-8: JSON has none of them.
    """
    if array.dtype.kind == "f" and (array.dtype.itemsize == 2 or not np.isfinite(array).all()):
        raise InputError(
            f"{where}: expected finite FP32 or FP64, got others, which JSON cannot hold: write it as binary data"
        )
    if name_datatype(array, where) != "BYTES":
        return array.ravel().tolist()
    try:
        return [one.decode() for one in _list_strings(array, where)]
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: expected bytes in UTF-8, got others ({error}): write it as binary data") from error


def write_binary_data(array: Array, where: str) -> bytes:
    """The inverse of :func:`read_binary_data`.

    Raises :class:`InputError`, which names the array ``where``, for other dtypes and objects.
    """
    if (datatype := name_datatype(array, where)) != "BYTES":
        return array.astype(DATATYPES[datatype], copy=False).tobytes()
    return b"".join(_LENGTH.pack(len(one)) + one for one in _list_strings(array, where))


def _list_strings(array: Array, where: str) -> Sequence[bytes]:
    try:
        return [one if isinstance(one, bytes) else str.encode(one) for one in array.ravel().tolist()]
    except (TypeError, UnicodeEncodeError) as error:
        raise InputError(
            f"{where}: expected an array of strings or bytes, got others ({error}): convert its elements"
        ) from error
