"""The Open Inference Protocol over HTTP, version 2, with binary tensor data: reads requests and writes responses.

Everything here is a pure function of bytes and arrays. Binary data are little-endian and row-major without padding, and each
element of BYTES comes after its length in 4 bytes.
Source: https://github.com/kserve/open-inference-protocol (REST), and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from reprlib import repr as shorten
from typing import Annotated, Any

import msgspec
import numpy as np

from exitlens.errors import InputError, RequestError, suggest

Array = np.ndarray[Any, np.dtype[Any]]

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")
_SHORT = 4096  # bytes of JSON up to which what was read is remembered


class _Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=32)]  # as in every NumPy
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1)]
    outputs: list[_Output] = []
    id: str = ""
    model_name: str = ""  # which KServe's client sends
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request for inference; empty texts and mappings stand for fields that it does not have."""

    id: str  # repeated in the response
    inputs: Mapping[str, Array]  # in their order, often read-only views of the body; elements of BYTES are bytes objects
    outputs: Mapping[str, bool]  # the wanted outputs, and whether each comes as binary data; empty for the default outputs
    parameters: Mapping[str, Any]  # all but binary_data_output; their values are not checked
    binary_output: bool  # outputs that are not named come as binary data
    model_name: str  # beside the name in the address


def read_infer(body: bytes | memoryview, header_length: int | None, *, max_elements: int) -> InferRequest:
    """Return a request for inference, whose arrays are views of the body where they are aligned.

    Args:
        header_length: bytes of the JSON, before the binary data of the inputs; ``None`` for all.
        max_elements: elements that the inputs may have together; a dimension of 0 counts as 1.

    Raises:
        RequestError: for a malformed request, with the place in it; its status is 413 for too many elements.
    """
    view = memoryview(body).cast("B")
    length = len(view) if header_length is None else header_length
    if not 0 < length <= len(view):
        raise RequestError(
            f"{HEADER_LENGTH}: expected the length of the JSON, 1 to {len(view)} bytes of this body, got {length}. "
            "Fix: send it before any binary data (a body without JSON is not supported)."
        )
    parse = _recall if length < min(len(view), _SHORT) else _parse
    request, rest = parse(bytes(view[:length]), header_length is None, max_elements), view[length:]
    inputs: dict[str, Array] = {}
    for i, given in enumerate(request.inputs):
        where, shape = f"inputs[{i}]", tuple(given.shape)
        if given.data is msgspec.UNSET:
            size, place = given.parameters["binary_data_size"], f"{where}.parameters.binary_data_size"
            if type(size) is not int or size < 0:
                raise RequestError(f"{place}: expected a number of bytes, got {shorten(size)}. Fix: send the tensor's.")
            if size > len(rest):
                raise RequestError(
                    f"{place}: expected at most the {len(rest)} bytes that are left of the body, got {shorten(size)}. "
                    f"Fix: send the data after the JSON, in the inputs' order, and the JSON's length as {HEADER_LENGTH}."
                )
            inputs[given.name], rest = read_binary_data(rest[:size], given.datatype, shape, where), rest[size:]
        else:
            inputs[given.name] = read_json_data(given.data, given.datatype, shape, f"{where}.data")
    if rest:
        raise RequestError(f"body: expected its end after the last tensor, got {len(rest)} bytes more")
    binary = _read_flag(request.parameters, "binary_data_output", False, "")
    outputs = {
        output.name: _read_flag(output.parameters, "binary_data", binary, f"outputs[{i}].")
        for i, output in enumerate(request.outputs)
    }
    parameters = {name: value for name, value in request.parameters.items() if name != "binary_data_output"}
    return InferRequest(request.id, inputs, outputs, parameters, binary, request.model_name)


def _parse(text: bytes, is_all: bool, max_elements: int) -> _Request:
    """Return the JSON of a request; its data are left to be read later."""
    try:
        request = _DECODER.decode(text)
    except RecursionError as error:
        raise RequestError(
            "request: expected arrays as deep as the shape, got too many in one another. Fix: send flat data."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _explain(error, "", f", and {HEADER_LENGTH} where binary data follow" if is_all else "") from error
    for side, entries in (("inputs", request.inputs), ("outputs", request.outputs)):
        names = [entry.name for entry in entries]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise RequestError(f"{side}[{i}].name: {shorten(name)} was there before. Fix: send each name once.")
            if unknown := entries[i].parameters.keys() - {"binary_data_size" if side == "inputs" else "binary_data"}:
                words = f"{shorten(sorted(unknown))} are not supported. Fix: leave them out, and send the data in the body."
                raise RequestError(f"{side}[{i}].parameters: {words}")
    for i, given in enumerate(request.inputs):
        where, count = f"inputs[{i}]", math.prod(size or 1 for size in given.shape)
        if count > max_elements:
            raise RequestError(
                f"{where}.shape: expected at most the {max_elements} elements that the request may still have, got "
                f"{shorten(given.shape)}. Fix: send fewer samples at a time.",
                status=413,
            )
        max_elements -= count
        if given.datatype not in DATATYPES:
            known, hint = ", ".join(DATATYPES), suggest(given.datatype[:20], DATATYPES)
            raise RequestError(f"{where}.datatype: expected one of {known}, got {shorten(given.datatype)}.{hint}")
        if (given.data is msgspec.UNSET) != ("binary_data_size" in given.parameters):
            got = "neither" if given.data is msgspec.UNSET else "both"
            raise RequestError(f"{where}: expected data or the parameter binary_data_size, got {got}. Fix: send one.")
    return request


_recall = lru_cache(256)(_parse)  # most requests of a client have the same short JSON before their binary data


def _explain(error: Exception, where: str, hint: str = "", datatype: str = "") -> RequestError:
    """Return msgspec's error about JSON with the place in the request: ``where`` and msgspec's own path."""
    if not isinstance(error, msgspec.ValidationError):
        where = where or "request"
        return RequestError(f"{where}: expected JSON in UTF-8, got other bytes ({error}). Fix: send valid JSON{hint}.")
    words, _, path = str(error).partition(" - at `$")
    words, path = f"{words[:1].lower()}{words[1:200]}" + (f" for {datatype}" if datatype else ""), path.removesuffix("`")
    if unknown := re.fullmatch(r"object contains unknown field `(.*)`", words, re.DOTALL):
        kind = _Input if path.startswith(".inputs") else _Output if path.startswith(".outputs") else _Request
        known = kind.__struct_fields__
        words = f"expected the fields {', '.join(known)}, got {shorten(unknown[1])}.{suggest(unknown[1][:20], known)}"
    return RequestError(f"{(where + path).lstrip('.') or 'request'}: {words}")


def _read_flag(parameters: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{where}parameters.{name}: expected true or false, got {shorten(value)}")
    return value


@lru_cache
def _make_decoder(datatype: str, depth: int) -> msgspec.json.Decoder[list[Any]]:
    """Return a decoder of JSON data of ``depth`` arrays in one another."""
    kind: Any = {"BOOL": bool, "FP32": float, "FP64": float, "BYTES": str}.get(datatype)
    if kind is None:
        limits = np.iinfo(DATATYPES[datatype])
        least, most = (None if abs(limit) >= 2**63 - 1 else limit for limit in (limits.min, limits.max))  # else NumPy's task
        kind = Annotated[int, msgspec.Meta(ge=least, le=most)]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def read_json_data(text: bytes | msgspec.Raw, datatype: str, shape: tuple[int, ...], where: str) -> Array:  # -> (*shape)
    """Return the tensor of JSON data that are flat, in row-major order, or nested according to ``shape``.

    Raises :class:`RequestError`, which names the place ``where``, for data of another number or type, or out of range.
    """
    if datatype == "FP16":
        raise RequestError(f"{where}: FP16 has no form in JSON. Fix: send it as binary data, or as FP32.")
    is_nested = re.match(rb"\[\s*\[", text) is not None
    dtype = DATATYPES[datatype]
    try:
        values = _make_decoder(datatype, max(len(shape), 1) if is_nested else 1).decode(text)
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except msgspec.DecodeError as error:
        raise _explain(error, where, datatype=datatype) from error
    except OverflowError as error:
        raise RequestError(f"{where}: a number is out of the range of {datatype}. Fix: send a wider datatype.") from error
    except ValueError:  # arrays of different lengths
        array, is_nested = np.empty(0), True
    if array.size != math.prod(shape) or (is_nested and array.shape != shape[: array.ndim]):
        got = "arrays of other lengths" if is_nested else f"{array.size} elements"
        raise RequestError(
            f"{where}: expected {math.prod(shape)} elements, flat or nested as the shape {list(shape)} says, got {got}. "
            "Fix: send a shape that fits the data."
        )
    if datatype == "BYTES":
        array[...] = np.array([*(text.encode() for text in array.ravel()), None], object)[:-1].reshape(array.shape)
    elif dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{where}: a number is out of the range of {datatype}. Fix: send a wider datatype.")
    return array.reshape(shape)


def read_binary_data(data: memoryview, datatype: str, shape: tuple[int, ...], where: str) -> Array:  # -> (*shape)
    """Return the tensor of binary data: a view of them, or a copy where they are not aligned, or BYTES.

    NaN and infinity are let through. Raises :class:`RequestError`, which names the tensor ``where``, for data of another
    size, and for a BOOL that is neither 0 nor 1.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        strings, start, end = np.empty(count, object), 0, len(data)
        for i in range(count):
            size = _LENGTH.unpack_from(data, start)[0] if start + 4 <= end else end
            if start + 4 + size > end:
                raise RequestError(
                    f"{where}: expected {count} elements of BYTES, each after its length in 4 bytes, got data that end in "
                    f"element {i}. Fix: send them whole."
                )
            strings[i] = bytes(data[start + 4 : start + 4 + size])
            start += 4 + size
        if start != end:
            left = f"{end - start} bytes are left after {count} elements of BYTES"
            raise RequestError(f"{where}: {left}. Fix: send a shape that fits the data.")
        return strings.reshape(shape)
    dtype = DATATYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"{where}.parameters.binary_data_size: expected {count * dtype.itemsize} for {datatype} of the shape "
            f"{list(shape)}, got {len(data)}. Fix: send the bytes of every element and no others."
        )
    if count == 0:
        return np.empty(shape, dtype)
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(f"{where}: expected bytes of 0 and 1 for BOOL, got others. Fix: send UINT8.")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def write_infer(
    model: str,
    version: str,
    id: str,
    outputs: Sequence[tuple[str, Array]],
    *,
    binary: Container[str] = (),
    parameters: Mapping[str, str] | None = None,
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of the JSON in it for its header; ``None`` if the body is all JSON.

    Arrays named in ``binary`` come as binary data behind the JSON; strings and bytes become BYTES. Empty texts and
    parameters are left out. Raises :class:`InputError` for an array of another type, or values that JSON cannot hold.
    """
    entries, blobs = [], []
    for name, array in outputs:
        where = f"outputs: {name!r}"
        entry: dict[str, Any] = {"name": name, "datatype": name_datatype(array, where), "shape": list(array.shape)}
        if name in binary:
            blobs.append(write_binary_data(array, where))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif array.dtype.kind == "f" and (array.dtype.itemsize == 2 or not np.isfinite(array).all()):
            raise InputError(f"{where}: expected finite FP32 or FP64, which JSON can hold. Fix: ask for it as binary data.")
        elif entry["datatype"] == "BYTES":
            entry["data"] = [text.decode() if isinstance(text, bytes) else text for text in array.ravel().tolist()]
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    optional = {"model_version": version, "id": id, "parameters": dict(parameters or {})}
    response = {"model_name": model, **{name: value for name, value in optional.items() if value}, "outputs": entries}
    header = msgspec.json.encode(response)
    return b"".join([header, *blobs]), len(header) if blobs else None


def name_datatype(array: Array, where: str) -> str:
    """Return the protocol's name for the dtype of an array; strings and objects are BYTES.

    Raises :class:`InputError`, which names the array ``where``, for a dtype that the protocol does not have.
    """
    if array.dtype.kind in "USO":
        return "BYTES"
    if (dtype := array.dtype.newbyteorder("<")) in _NAMES:
        return _NAMES[dtype]
    raise InputError(f"{where}: expected an array of {', '.join(DATATYPES)}, got {array.dtype}")


def write_binary_data(array: Array, where: str) -> bytes:
    """Return the bytes that :func:`read_binary_data` reads; raise :class:`InputError` for other dtypes."""
    if (datatype := name_datatype(array, where)) != "BYTES":
        return array.astype(DATATYPES[datatype], copy=False).tobytes()
    texts = [text if isinstance(text, bytes) else text.encode() for text in array.ravel().tolist()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
