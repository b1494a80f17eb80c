"""Fields of the JSON objects in a request: each is there, of its type, or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from reprlib import repr as shorten
from typing import Any

from exitlens.errors import RequestError, suggest

Parameter = bool | int | float | str

HEADER_LENGTH = "Inference-Header-Content-Length"


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read_object(text: memoryview, header_length: int | None) -> Any:
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


def check_fields(entry: object, known: Sequence[str], where: str) -> None:
    """Raises :class:`RequestError` unless ``entry`` is an object with fields of these names, or some of them."""
    if not isinstance(entry, dict):
        raise RequestError(f"{where}: expected an object, got {shorten(entry)}: send one with {', '.join(known)}")
    if unknown := [name for name in entry if name not in known]:
        raise RequestError(
            f"{where}: expected the fields {', '.join(known)}, got {shorten(unknown)}: leave them out, or send them as "
            f"parameters.{suggest(unknown[0][:20], known)}"
        )


def read_list(request: Mapping[str, Any], name: str) -> list[Any]:
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


def read_text(entry: Mapping[str, Any], name: str, default: str | None, where: str) -> str:
    """The string in a field; without a default, it must be there and not be empty. Raises :class:`RequestError`."""
    value = entry.get(name, default)
    if not isinstance(value, str) or not _is_text(value) or (default is None and not value):
        raise RequestError(f"{where}{name}: expected a string, got {shorten(value)}: send one")
    return value


def read_parameters(entry: Mapping[str, Any], where: str) -> dict[str, Parameter]:
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


def take_flag(parameters: dict[str, Parameter], name: str, default: bool, where: str) -> bool:
    """Removes a parameter that is true or false and returns it; raises :class:`RequestError` for another value."""
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{where}parameters.{name}: expected true or false, got {shorten(value)}: send one of them")
    return value
