"""Routes of the Open Inference Protocol, version 2."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import exitlens
from exitlens.errors import RequestError, suggest
from exitlens.model.cutting.stage import Activations
from exitlens.serving.answers import DEFAULT_OUTPUTS, MAPS, OUTPUTS, shape_output
from exitlens.serving.http.fields import HEADER_LENGTH
from exitlens.serving.http.protocol import (
    InferRequest,
    TensorMetadata,
    describe_model,
    describe_server,
    read_infer,
    write_infer,
)
from exitlens.serving.http.requests import Service, describe_terms, note, note_answer, read_terms
from exitlens.serving.http.tensors import name_datatype
from exitlens.serving.models import IMAGE, TEXT, ServedModel
from exitlens.serving.tickets import Terms, Ticket
from exitlens.types import Preprocess, TextPreprocess

PLATFORM = "exitlens"
EXTENSIONS = ("binary_tensor_data",)
QUICK_BYTES = 1 << 18  # a body that is read at once: longer ones, and text to parse, are read on another thread


class InferRoutes:
    """The protocol's routes."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def list_routes(self) -> list[Route]:
        """For the app."""
        routes = [
            Route("/v2", self.describe_server),
            Route("/v2/health/live", self.tell_live),
            Route("/v2/health/ready", self.tell_ready),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(path, self.describe_model),
                Route(f"{path}/ready", self.tell_model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def describe_server(self, request: Request) -> Response:
        """GET /v2."""
        note(request, "/v2")
        return JSONResponse(describe_server(exitlens.__version__, EXTENSIONS))

    async def tell_live(self, request: Request) -> Response:
        """GET /v2/health/live: 200, or 503 once the thread of a model has ended, which nothing but a restart mends."""
        note(request, "/v2/health/live")
        alive = self.service.repository.is_alive
        return JSONResponse({"live": alive}, 200 if alive else 503)

    async def tell_ready(self, request: Request) -> Response:
        """GET /v2/health/ready: 200, or 503 while any model is not ready."""
        note(request, "/v2/health/ready")
        ready = self.service.repository.is_ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def tell_model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}/ready."""
        note(request, "/v2/models/{name}/ready")
        endpoint = self.service.repository.find(*_name(request))
        return JSONResponse({"name": endpoint.model.name, "ready": endpoint.is_ready}, 200 if endpoint.is_ready else 503)

    async def describe_model(self, request: Request) -> Response:
        """GET /v2/models/{name}."""
        note(request, "/v2/models/{name}")
        model = self.service.repository.find(*_name(request)).model
        inputs = [TensorMetadata(x.name, name_datatype(np.empty(0, x.dtype), x.name), (-1, *x.shape)) for x in model.inputs]
        if model.info.preprocess is not None:
            other = IMAGE if isinstance(model.info.preprocess, Preprocess) else TEXT
            inputs.append(TensorMetadata(other, "BYTES", (-1,)))
        outputs = [TensorMetadata(name, kind, shape_output(model, name)) for name, (kind, *_) in OUTPUTS.items()]
        return JSONResponse(describe_model(model.name, [model.version], PLATFORM, inputs, outputs))

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{name}/infer."""
        started = time.monotonic()
        note(request, "/v2/models/{name}/infer")
        name, version = _name(request)
        self.service.repository.find(name, version)  # before the body is read
        request.state.model = name
        body, length = await request.body(), _read_length(request)
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
        note_answer(request, model, ticket)
        return _respond(model, ticket, given, wanted)

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


def _name(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _read_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
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


def _respond(model: ServedModel, ticket: Ticket, given: InferRequest, wanted: Iterable[str]) -> Response:
    outputs = [(name, OUTPUTS[name][2](model, ticket)) for name in wanted]
    everything = {name for name, _ in outputs} if given.binary_output else set()
    binary = {one.name for one in given.outputs if one.binary} if given.outputs else everything
    said: dict[str, Any] = describe_terms(model, ticket.terms)
    body, length = write_infer(model.name, model.version, given.id, outputs, binary=binary, parameters=said)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")
