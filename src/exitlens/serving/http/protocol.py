"""The Open Inference Protocol over HTTP, version 2, with binary tensor data: requests are read, responses are written.

Everything here is a pure function of bytes and arrays.
Source: https://github.com/kserve/open-inference-protocol (REST), and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from reprlib import repr as shorten
from typing import Any, NamedTuple

from exitlens.errors import InputError, RequestError, suggest
from exitlens.serving.http.tensors import (
    DATATYPES,
    Array,
    name_datatype,
    read_binary_data,
    read_json_data,
    write_binary_data,
    write_json_data,
)

Parameter = bool | int | float | str

HEADER_LENGTH = "Inference-Header-Content-Length"
_SHORT = 4096  # bytes of JSON that is remembered
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_MOST_DIMENSIONS = 32  # that every NumPy has
_REQUEST = ("id", "inputs", "model_name", "outputs", "parameters")  # KServe's client names the model as well
_INPUT = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT = ("name", "parameters")


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """An input of a request.

    Attributes:
        data: of ``shape``; BYTES are an array of objects, which are ``bytes``. Often a read-only view of the body.
        parameters: those that say something else than where the data are.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for, as binary data or in JSON; other parameters are for who answers to judge."""

    name: str
    binary: bool
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request for inference.

    Attributes:
        id: which the response repeats; empty: none.
        inputs: by name, in their order.
        outputs: empty: all that are given by default.
        parameters: all but ``binary_data_output``; which of them can be met is for who answers to judge.
        binary_output: outputs that are not named come as binary data.
        model_name: as the body has it, which few clients send; empty: none. The address of the request counts.
    """

    id: str
    inputs: Mapping[str, NamedTensor]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Parameter]
    binary_output: bool
    model_name: str = ""


class _Rest:
    """What comes after the JSON in a body, taken piece by piece."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._start = view, 0

    def take(self, size: object, where: str) -> memoryview:
        place, left = f"{where}.parameters.binary_data_size", len(self._view) - self._start
        if type(size) is not int or size < 0:
            raise RequestError(f"{place}: expected a number of bytes, got {shorten(size)}: send that of the tensor")
        if size > left:
            raise RequestError(
                f"{place}: expected at most the {left} bytes that are left of the body, got {shorten(size)}: send the "
                f"data after the JSON, in the order of the inputs, and the length of the JSON as {HEADER_LENGTH}"
            )
        self._start += size
        return self._view[self._start - size : self._start]

    def finish(self) -> None:
        if left := len(self._view) - self._start:
            raise RequestError(
                f"body: expected its end after the last tensor, got {left} bytes more: give each input its size"
            )


def read_infer(body: bytes | memoryview, header_length: int | None, *, max_elements: int) -> InferRequest:
    """A request for inference.

    Args:
        body: the JSON, and the binary data of the inputs behind it, of which the tensors are views where they are aligned.
        header_length: bytes of the JSON; ``None``: all.
        max_elements: that the inputs may have together; a dimension of 0 counts as 1.

    Raises:
        RequestError: for all that is malformed, with the place in the request; its status is 413 for too many elements.
    """
    view = memoryview(body).cast("B")
    length = len(view) if header_length is None else header_length
    if not 0 < length <= len(view):
        raise RequestError(
            f"{HEADER_LENGTH}: expected the length of the JSON, 1 to {len(view)} bytes of this body, got {length}: "
            "send it before any binary data (a body without JSON is not supported)"
        )
    head = _recall_head(bytes(view[:length]), max_elements) if length < min(len(view), _SHORT) else None
    head = head or _read_head(view[:length], header_length, max_elements)
    rest = _Rest(view[length:])
    inputs = {one.name: one.fill(rest) for one in head.inputs}
    rest.finish()
    return InferRequest(head.id, inputs, head.outputs, dict(head.parameters), head.binary, head.model_name)


class _Sketch(NamedTuple):
    """An input as the JSON describes it: with data, or with the number of bytes that they have behind it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, Parameter]
    size: object
    data: Array | None
    where: str

    def fill(self, rest: _Rest) -> NamedTensor:
        data = self.data
        if data is None:
            data = read_binary_data(rest.take(self.size, self.where), self.datatype, self.shape, self.where)
        return NamedTensor(self.name, self.datatype, self.shape, data, dict(self.parameters))


class _Head(NamedTuple):
    """All that the JSON says."""

    id: str
    inputs: tuple[_Sketch, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Parameter]
    binary: bool
    model_name: str


@lru_cache(256)
def _recall_head(text: bytes, max_elements: int) -> _Head | None:
    """What short JSON before binary data says, which is the same in most requests of a client; ``None``: not kept."""
    head = _read_head(memoryview(text), len(text), max_elements)
    return head if all(one.data is None for one in head.inputs) else None


def _read_head(text: memoryview, header_length: int | None, max_elements: int) -> _Head:
    request = _read_object(text, header_length)
    _check_fields(request, _REQUEST, "request")
    parameters = _read_parameters(request, "")
    binary = _take_flag(parameters, "binary_data_output", False, "")
    id_, model = (_read_text(request, name, "", "") for name in ("id", "model_name"))
    inputs = tuple(_read_inputs(request, max_elements).values())
    return _Head(id_, inputs, _read_outputs(request, binary), parameters, binary, model)


def _read_inputs(request: Mapping[str, Any], max_elements: int) -> dict[str, _Sketch]:
    inputs: dict[str, _Sketch] = {}
    for i, entry in enumerate(_read_list(request, "inputs")):
        where = f"inputs[{i}]"
        _check_fields(entry, _INPUT, where)
        name = _read_text(entry, "name", None, f"{where}.")
        if name in inputs:
            raise RequestError(f"{where}.name: {shorten(name)} was there before: send each input once")
        shape = _read_shape(entry, max_elements, where)
        max_elements -= math.prod(size or 1 for size in shape)
        inputs[name] = _read_tensor(entry, name, shape, where)
    if not inputs:
        raise RequestError("inputs: expected one input or more, got none: send the model's inputs (its metadata name them)")
    return inputs


def _read_shape(entry: Mapping[str, Any], most: int, where: str) -> tuple[int, ...]:
    found = entry.get("shape")
    if not isinstance(found, list) or len(found) > _MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in found):
        raise RequestError(
            f"{where}.shape: expected an array of at most {_MOST_DIMENSIONS} integers from 0 on, got {shorten(found)}: "
            "send the sizes of all dimensions, the batch among them"
        )
    if math.prod(size or 1 for size in found) > most:
        raise RequestError(
            f"{where}.shape: expected at most the {most} elements that the request may still have, got {shorten(found)}: "
            "send fewer samples at a time",
            status=413,
        )
    return tuple(found)


def _read_tensor(entry: Mapping[str, Any], name: str, shape: tuple[int, ...], where: str) -> _Sketch:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        hint = suggest(datatype[:20], DATATYPES) if isinstance(datatype, str) else ""
        raise RequestError(f"{where}.datatype: expected one of {', '.join(DATATYPES)}, got {shorten(datatype)}.{hint}")
    parameters = _read_parameters(entry, f"{where}.")
    if ("data" in entry) == ("binary_data_size" in parameters):
        got = "both" if "data" in entry else "neither"
        raise RequestError(f"{where}: expected data or the parameter binary_data_size, got {got}: send one of them")
    data = read_json_data(entry["data"], datatype, shape, where) if "data" in entry else None
    return _Sketch(name, datatype, shape, parameters, parameters.pop("binary_data_size", None), data, where)


def _read_outputs(request: Mapping[str, Any], binary: bool) -> tuple[RequestedOutput, ...]:
    outputs: dict[str, RequestedOutput] = {}
    for i, entry in enumerate(_read_list(request, "outputs")):
        where = f"outputs[{i}]"
        _check_fields(entry, _OUTPUT, where)
        name, parameters = _read_text(entry, "name", None, f"{where}."), _read_parameters(entry, f"{where}.")
        if name in outputs:
            raise RequestError(f"{where}.name: {shorten(name)} was there before: ask for each output once")
        outputs[name] = RequestedOutput(name, _take_flag(parameters, "binary_data", binary, f"{where}."), parameters)
    return tuple(outputs.values())


def write_infer(
    model: str,
    version: str,
    id: str,
    outputs: Sequence[tuple[str, Array]],
    *,
    binary: Container[str] = (),
    parameters: Mapping[str, Parameter] | None = None,
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of the JSON in it for its header; ``None``: the body is all JSON.

    Args:
        model, version, id: left out where they are empty, but for the model's name.
        outputs: names and arrays of the protocol's types; strings, bytes and objects that are one of them become BYTES.
        binary: names of the outputs that come as binary data behind the JSON.
        parameters: of the response.

    Raises:
        InputError: a ``ValueError``; for an array of another type, and for what JSON cannot hold, as NaN.
    """
    entries, blobs = [], []
    for name, array in outputs:
        where = f"outputs: {name!r}"
        entry: dict[str, Any] = {"name": name, "datatype": name_datatype(array, where), "shape": list(array.shape)}
        if name in binary:
            blobs.append(write_binary_data(array, where))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = write_json_data(array, where)
        entries.append(entry)
    response: dict[str, Any] = {
        "model_name": model,
        "model_version": version,
        "id": id,
        "parameters": dict(parameters or {}),
    }
    response = {name: value for name, value in response.items() if value or name == "model_name"} | {"outputs": entries}
    try:
        header = _ENCODER.encode(response).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"parameters: expected finite numbers, strings, true or false, got others ({error})") from error
    return b"".join([header, *blobs]), len(header) if blobs else None


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_object(text: memoryview, header_length: int | None) -> Any:
    """Any JSON value, in UTF-8; NaN and Infinity are none. Raises :class:`RequestError` for other text."""
    try:
        return _DECODER.decode(str(text, "utf-8"))
    except RecursionError as error:
        raise RequestError(
            "request: expected arrays as deep as the shape, got too many in one another: send flat data"
        ) from error
    except ValueError as error:  # no UTF-8, no JSON, or an integer with thousands of digits
        hint = "" if header_length is not None else f", and {HEADER_LENGTH} where binary data follow"
        raise RequestError(f"request: expected JSON in UTF-8, got other bytes ({error}): send valid JSON{hint}") from error


def _check_fields(entry: object, known: Sequence[str], where: str) -> None:
    """Raises :class:`RequestError` unless ``entry`` is an object with fields of these names, or some of them."""
    if not isinstance(entry, dict):
        raise RequestError(f"{where}: expected an object, got {shorten(entry)}: send one with {', '.join(known)}")
    if unknown := [name for name in entry if name not in known]:
        raise RequestError(
            f"{where}: expected the fields {', '.join(known)}, got {shorten(unknown)}: leave them out, or send them as "
            f"parameters.{suggest(unknown[0][:20], known)}"
        )


def _read_list(request: Mapping[str, Any], name: str) -> list[Any]:
    """The array in a field, empty where it is not there; raises :class:`RequestError` for another value."""
    found = request.get(name, [])
    if not isinstance(found, list):
        raise RequestError(f"{name}: expected an array of objects, got {shorten(found)}: send one")
    return found


def _is_text(value: object) -> bool:
    """Whether it is a string without halves of characters, which JSON can hold but UTF-8 cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_number(value: object) -> bool:
    if type(value) is int:
        return -(2**63) <= value < 2**64
    return type(value) is float and math.isfinite(value)


def _read_text(entry: Mapping[str, Any], name: str, default: str | None, where: str) -> str:
    """The string in a field; without a default, it must be there and not be empty. Raises :class:`RequestError`."""
    value = entry.get(name, default)
    if not isinstance(value, str) or not _is_text(value) or (default is None and not value):
        raise RequestError(f"{where}{name}: expected a string, got {shorten(value)}: send one")
    return value


def _read_parameters(entry: Mapping[str, Any], where: str) -> dict[str, Parameter]:
    """A copy of the parameters, of any names; raises :class:`RequestError` for other values, and shared memory."""
    place, found = f"{where}parameters", entry.get("parameters", {})
    if not isinstance(found, dict):
        raise RequestError(f"{place}: expected an object, got {shorten(found)}: send one, or none")
    for name, value in found.items():
        if name.startswith("shared_memory_"):
            raise RequestError(f"{place}: {shorten(name)}: shared memory is not supported: send the data in the body")
        if not (_is_text(name) and (isinstance(value, bool) or _is_number(value) or _is_text(value))):
            raise RequestError(
                f"{place}: {shorten(name)}: expected a number of at most 64 bits, a string, true or false, got "
                f"{shorten(value)}: send one of them"
            )
    return dict(found)


def _take_flag(parameters: dict[str, Parameter], name: str, default: bool, where: str) -> bool:
    """Removes a parameter that is true or false and returns it; raises :class:`RequestError` for another value."""
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{where}parameters.{name}: expected true or false, got {shorten(value)}: send one of them")
    return value
