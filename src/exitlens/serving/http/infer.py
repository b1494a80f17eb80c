"""Inference by the Open Inference Protocol: a request in, answers out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from exitlens.errors import RequestError, suggest
from exitlens.model.cutting.stage import Activations
from exitlens.serving.answers import DEFAULT_OUTPUTS, MAPS, OUTPUTS
from exitlens.serving.batching.tickets import Terms, Ticket
from exitlens.serving.http.fields import HEADER_LENGTH
from exitlens.serving.http.protocol import InferRequest, read_infer, write_infer
from exitlens.serving.http.requests import Service, describe_terms, note_answer, read_terms
from exitlens.serving.models import IMAGE, TEXT, ServedModel
from exitlens.types import TextPreprocess

QUICK_BYTES = 1 << 18  # a body that is read at once: longer ones, and text to parse, are read on another thread
_PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_KINDS = ((b"content-type", b"application/json"), (b"content-type", b"application/octet-stream"))


class Shortcut:
    """ASGI middleware that leads requests for inference past all other routes: most requests are of this kind."""

    def __init__(self, app: ASGIApp, infer: ASGIApp) -> None:
        self.app, self.infer = app, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self.app(scope, receive, send)
            return
        scope["path_params"] = {name: value for name, value in found.groupdict().items() if value}
        await self.infer(scope, receive, send)


class InferApp:
    """``POST /v2/models/{name}/infer``, with ``/versions/{version}`` or without, as an ASGI app."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        started, state, at = time.monotonic(), scope["state"], scope["path_params"]
        name, version = at["name"], at.get("version", "")
        state["route"] = "/v2/models/{name}/infer"
        self.service.repository.find(name, version).batcher.check_room(1)  # before the body is read
        state["model"] = name
        body, length = await _read_body(receive), _read_length(scope)
        quick = length is not None and len(body) <= QUICK_BYTES
        given = self._read(body, length) if quick else await self.service.run_aside(self._read, body, length)
        wanted = _list_wanted(given)
        attention = bool({*wanted} & {*MAPS})

        async def prepare(model: ServedModel) -> tuple[Activations, Terms]:
            terms = read_terms(model, given.parameters, started, attention)
            if quick and IMAGE not in given.inputs:
                return self._make_inputs(model, given), terms
            return await self.service.run_aside(self._make_inputs, model, given), terms

        model, ticket = await self.service.repository.answer(name, version, prepare)
        note_answer(state, model, ticket)
        await _respond(model, ticket, given, wanted, send)

    def _read(self, body: bytes, length: int | None) -> InferRequest:
        """The request, which may have as many numbers as the body has bytes at most."""
        return read_infer(body, length, max_elements=self.service.limits.max_body_bytes)

    def _make_inputs(self, model: ServedModel, given: InferRequest) -> Activations:
        if given.model_name and given.model_name != model.name:
            raise RequestError(f"model_name: the address says {model.name}, the body {given.model_name!r:.60}")
        for one in given.inputs.values():
            if one.parameters:
                raise RequestError(f"inputs.{one.name:.60}: its parameters {sorted(one.parameters)} are not known here")
            self.service.check_count(one.shape[0] if one.shape else 0)
        if set(given.inputs) == {IMAGE}:
            return model.read_images(_flatten_bytes(given, IMAGE), self.service.limits.max_pixels)
        if set(given.inputs) == {TEXT} and isinstance(model.info.preprocess, TextPreprocess):
            return model.read_texts([_decode(one) for one in _flatten_bytes(given, TEXT)])
        return model.check_arrays({name: one.data for name, one in given.inputs.items()})


async def _read_body(receive: Receive) -> bytes:
    parts = list[bytes]()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_length(scope: Scope) -> int | None:
    text = next((value for name, value in scope["headers"] if name == _HEADER_LENGTH), None)
    if text is None:
        return None
    if not (text.isdigit() and len(text) < 16):
        raise RequestError(f"{HEADER_LENGTH}: expected a number of bytes, got {text!r:.60}")
    return int(text)


def _list_wanted(given: InferRequest) -> Sequence[str]:
    """Names of the outputs that a request asks for; raises :class:`RequestError` for unknown ones."""
    for one in given.outputs:
        if one.name not in OUTPUTS:
            raise RequestError(
                f"outputs: expected some of {', '.join(OUTPUTS)}, got {one.name!r:.60}.{suggest(one.name[:20], OUTPUTS)}"
            )
        if one.parameters:
            raise RequestError(f"outputs.{one.name}: its parameters {sorted(one.parameters)} are not known here")
    return [one.name for one in given.outputs] or DEFAULT_OUTPUTS


def _flatten_bytes(given: InferRequest, name: str) -> list[bytes]:
    one = given.inputs[name]
    if one.datatype != "BYTES" or len(one.shape) not in (1, 2) or one.data.size != one.shape[0]:
        raise RequestError(f"{name}: expected BYTES of shape (B) or (B,1), got {one.datatype} of {list(one.shape)}")
    return list(one.data.reshape(-1))


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{TEXT}: expected UTF-8, got other bytes ({error.reason})") from error


async def _respond(model: ServedModel, ticket: Ticket, given: InferRequest, wanted: Iterable[str], send: Send) -> None:
    outputs = [(name, OUTPUTS[name][2](model, ticket)) for name in wanted]
    everything = {name for name, _ in outputs} if given.binary_output else set()
    binary = {one.name for one in given.outputs if one.binary} if given.outputs else everything
    said = describe_terms(model, ticket.terms)
    body, length = write_infer(model.name, model.version, given.id, outputs, binary=binary, parameters=said)
    headers = [_KINDS[length is not None], (b"content-length", b"%d" % len(body))]
    if length is not None:
        headers.append((_HEADER_LENGTH, b"%d" % length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
