"""The routes of the Open Inference Protocol: inference, and what it says of the server and its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import exitlens
from exitlens.errors import RequestError, suggest
from exitlens.model.cutting.stage import Activations
from exitlens.serving.cascade import Ticket
from exitlens.serving.http.guard import find_exchange
from exitlens.serving.http.protocol import HEADER_LENGTH, Array, InferRequest, name_datatype, read_infer, write_infer
from exitlens.serving.http.service import (
    DEFAULT_OUTPUTS,
    MAPS,
    OUTPUTS,
    Service,
    describe_terms,
    make_route,
    note_answer,
    read_terms,
    shape_output,
)
from exitlens.serving.models import IMAGE, TEXT, ServedModel
from exitlens.types.preprocessing import Preprocess, TextPreprocess

QUICK_BYTES = 1 << 18  # a body that is read at once: longer ones, and text to parse, are read on another thread


class InferenceRoutes:
    """The protocol's routes."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def list_routes(self) -> list[Route]:
        """Return the routes, those of most requests first."""
        paths = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        return [
            *(make_route(f"{path}/infer", self.infer, "POST") for path in paths),
            *(make_route(f"{path}/ready", self.tell_model_ready) for path in paths),
            *(make_route(path, self.describe_model) for path in paths),
            make_route("/v2", self.describe_server),
            make_route("/v2/health/live", self.tell_live),
            make_route("/v2/health/ready", self.tell_ready),
        ]

    async def infer(self, request: Request) -> Response:
        """Answer POST /v2/models/{name}/infer."""
        exchange = find_exchange(request.scope)
        with self.service.repository.enter(*_name(request)) as endpoint:  # which refuses before the body is read
            model = endpoint.model
            exchange.model = model.name
            body, length = await request.body(), _read_length(request)
            is_quick = length is not None and len(body) <= QUICK_BYTES
            given = self._read(body, length) if is_quick else await self.service.run_aside(self._read, body, length)
            wanted = _list_wanted(given)
            terms = read_terms(model, given.parameters, exchange.started, bool({*wanted} & {*MAPS}))
            if is_quick and IMAGE not in given.inputs:
                activations = self._make_inputs(model, given)
            else:
                activations = await self.service.run_aside(self._make_inputs, model, given)
            ticket = await endpoint.answer(activations, terms)
        note_answer(exchange, model, ticket)
        return _respond(model, ticket, given, wanted)

    def _read(self, body: bytes, length: int | None) -> InferRequest:
        """Return the request, which may have at most as many numbers as its body may have bytes."""
        return read_infer(body, length, max_elements=self.service.limits.max_body_bytes)

    def _make_inputs(self, model: ServedModel, given: InferRequest) -> Activations:
        if given.model_name and given.model_name != model.name:
            raise RequestError(f"model_name: the address says {model.name}, the body {given.model_name!r:.60}")
        for array in given.inputs.values():
            self.service.check_count(len(array) if array.ndim else 0)
        if set(given.inputs) == {IMAGE}:
            return model.read_images(_flatten_bytes(given.inputs[IMAGE], IMAGE), self.service.limits.max_pixels)
        if set(given.inputs) == {TEXT} and isinstance(model.info.preprocess, TextPreprocess):
            return model.read_texts([decode_text(text) for text in _flatten_bytes(given.inputs[TEXT], TEXT)])
        return model.check_arrays(given.inputs)

    async def describe_server(self, _: Request) -> Response:
        """Answer GET /v2."""
        extensions = ["binary_tensor_data"]
        return JSONResponse({"name": "exitlens", "version": exitlens.__version__, "extensions": extensions})

    async def tell_live(self, _: Request) -> Response:
        """Answer GET /v2/health/live: 503 once the thread of a model has ended, which only a restart cures."""
        alive = self.service.repository.is_alive
        return JSONResponse({"live": alive}, 200 if alive else 503)

    async def tell_ready(self, _: Request) -> Response:
        """Answer GET /v2/health/ready: 503 while any model is not ready."""
        ready = self.service.repository.is_ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def tell_model_ready(self, request: Request) -> Response:
        """Answer GET /v2/models/{name}/ready."""
        endpoint = self.service.repository.find(*_name(request))
        return JSONResponse({"name": endpoint.model.name, "ready": endpoint.is_ready}, 200 if endpoint.is_ready else 503)

    async def describe_model(self, request: Request) -> Response:
        """Answer GET /v2/models/{name}."""
        model = self.service.repository.find(*_name(request)).model
        inputs = [_describe(x.name, name_datatype(np.empty(0, x.dtype), x.name), (-1, *x.shape)) for x in model.inputs]
        for kind, name in ((Preprocess, IMAGE), (TextPreprocess, TEXT)):
            if isinstance(model.info.preprocess, kind):
                inputs.append(_describe(name, "BYTES", (-1,)))
        outputs = [_describe(name, output.datatype, shape_output(model, name)) for name, output in OUTPUTS.items()]
        about = {"name": model.name, "versions": [model.version], "platform": "exitlens"}
        return JSONResponse({**about, "inputs": inputs, "outputs": outputs})


def _name(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _describe(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return the metadata of a tensor; a dimension of any size is -1."""
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _read_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RequestError(f"{HEADER_LENGTH}: expected a number of bytes, got {text!r:.60}")
    return int(text)


def _list_wanted(given: InferRequest) -> Sequence[str]:
    """Return the names of the outputs that a request asks for; raises :class:`RequestError` for unknown ones."""
    for name in given.outputs:
        if name not in OUTPUTS:
            hint = suggest(name[:20], OUTPUTS)
            raise RequestError(f"outputs: expected some of {', '.join(OUTPUTS)}, got {name!r:.60}.{hint}")
    return [*given.outputs] or DEFAULT_OUTPUTS


def _flatten_bytes(array: Array, name: str) -> list[bytes]:
    if array.dtype != object or array.ndim not in (1, 2) or array.size != len(array):
        raise RequestError(f"{name}: expected BYTES of shape (B) or (B,1), got {array.dtype} of {list(array.shape)}")
    return list(array.reshape(-1))


def decode_text(text: bytes) -> str:
    """Return a text from its bytes; raises :class:`RequestError` unless they are UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{TEXT}: expected UTF-8, got other bytes ({error.reason})") from error


def _respond(model: ServedModel, ticket: Ticket, given: InferRequest, wanted: Sequence[str]) -> Response:
    outputs = [(name, OUTPUTS[name].write(model, ticket)) for name in wanted]
    binary = {name for name in wanted if given.outputs.get(name, given.binary_output)}
    said = describe_terms(model, ticket.terms)
    body, length = write_infer(model.name, model.version, given.id, outputs, binary=binary, parameters=said)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")
