"""The ASGI app: the Open Inference Protocol for programs; files and texts in, answers and pictures out, for people."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import exitlens
from exitlens.delivery.pictures import draw_image, draw_overlay, draw_strip
from exitlens.errors import RequestError
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.adapting import Adaptive
from exitlens.serving.cascade import Terms, Ticket, is_adapted
from exitlens.serving.endpoint import Endpoint
from exitlens.serving.http import answers
from exitlens.serving.http.guard import Guard, find_exchange
from exitlens.serving.http.protocol import HEADER_LENGTH, Array, InferRequest, name_datatype, read_infer, write_infer
from exitlens.serving.models import IMAGE, ServedModel, decode_text
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import ANSWERS
from exitlens.workflow.explanation import explain_batch

T = TypeVar("T")
Sample = bytes | str
LOG = logging.getLogger("exitlens.serving")
QUICK_BYTES = 1 << 18  # a body of the protocol that is read at once; longer ones, and text to parse, on another thread
QUICK_JSON_BYTES = 1 << 16  # the same for JSON to /classify and /explain
TICK, FADING = 0.02, 0.8  # seconds between looks at the event loop's lag, and what is left of it at the next
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PAGE_HEADERS = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}


def make_app(
    repository: Repository,
    limits: Limits | None = None,
    *,
    log: Callable[[dict[str, Any]], None] | None = None,
    reload_seconds: float = 0.0,
) -> Starlette:
    """Return the app that answers with these models, for any ASGI server. When it ends, the repository is closed.

    ``log`` takes a record of every request; bundles are checked for new versions every ``reload_seconds``, never if 0.
    """
    limits = limits or Limits()
    routes = _Routes(repository, limits)

    async def answer_unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": f"{error.detail}: see /openapi.json"}, error.status_code, headers=error.headers)

    @asynccontextmanager
    async def live(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_note_lag(repository))]
        if reload_seconds:
            tasks.append(asyncio.create_task(_reload(repository, reload_seconds)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(repository.close)
        routes.threads.shutdown(wait=False)

    return Starlette(
        routes=routes.list_routes(),
        middleware=[Middleware(Guard, limits=limits, metrics=repository.metrics, log=log)],
        exception_handlers={HTTPException: answer_unknown},
        lifespan=live,
    )


async def _note_lag(repository: Repository) -> None:
    """Measure how late the event loop is: for that long a request has waited before it is seen."""
    lag = 0.0
    while True:
        started = time.monotonic()
        await asyncio.sleep(TICK)
        lag = max(time.monotonic() - started - TICK, FADING * lag)
        repository.note_lag(lag)


async def _reload(repository: Repository, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(repository.reload)
        except Exception:  # such as no memory: the current versions go on
            LOG.exception("the bundles could not be checked for new versions")


def describe_api(models: Sequence[str]) -> dict[str, Any]:
    """Return the routes as an OpenAPI 3.1 description."""
    description: dict[str, Any] = json.loads(_read_resource("openapi.json"))
    description["info"]["version"] = exitlens.__version__
    description["components"]["parameters"]["model"]["schema"]["enum"] = list(models)
    return description


def _read_resource(name: str) -> str:
    return resources.files("exitlens.serving.http").joinpath(name).read_text(encoding="utf-8")


def describe_adaptive(adaptive: Adaptive) -> dict[str, Any]:
    """Return what a policy that adapts promises, and where it stands, JSON-ready."""
    facts = {"limit": adaptive.limit, "delta": adaptive.delta, "loss": adaptive.loss, "acts": adaptive.act}
    return facts | {"warm_up": adaptive.warm_up} | adaptive.status.to_dict()


@dataclass(frozen=True)
class _Asked:
    """A request of people: samples, the model, version and exit that it names, and its own terms."""

    samples: Sequence[Sample]
    model: str
    version: str
    exit: str | None
    terms: Mapping[str, Any]


class _Routes:
    """All routes, with two threads for decoding."""

    def __init__(self, repository: Repository, limits: Limits) -> None:
        self.repository, self.limits = repository, limits
        self.threads = ThreadPoolExecutor(2, "exitlens-decode")
        self._page, self._description = _read_resource("page.html"), describe_api(repository.names)

    def list_routes(self) -> list[Route]:
        """Return the routes, those of most requests first."""
        paths = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        return [
            *(_make_route(f"{path}/infer", self._infer, "POST") for path in paths),
            _make_route("/v2/models/{name}/feedback", self._take_feedback, "POST"),
            *(_make_route(f"{path}/ready", self._tell_model_ready) for path in paths),
            *(_make_route(path, self._describe_model) for path in paths),
            _make_route("/v2", self._describe_server),
            _make_route("/v2/health/live", self._tell_live),
            _make_route("/v2/health/ready", self._tell_ready),
            _make_route("/models", self._describe_models),
            _make_route("/classify", self._classify, "POST"),
            _make_route("/explain", self._explain, "POST"),
            _make_route("/v1/embeddings", self._embed, "POST"),
            _make_route("/metrics", self._show_metrics),
            _make_route("/", self._show_page),
            _make_route("/openapi.json", self._show_api),
        ]

    async def _run_aside(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call on another thread, so that other requests go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(call, *args))

    def _check_count(self, count: int) -> None:
        if not 0 < count <= self.limits.max_batch:
            status = 413 if count else 400
            raise RequestError(f"inputs: expected 1 to {self.limits.max_batch} samples in a request, got {count}", status)

    async def _answer(self, request: Request, endpoint: Endpoint, activations: Activations, terms: Terms) -> Ticket:
        """Return the answers to a request, and note them for the access log."""
        exchange = find_exchange(request.scope)
        ticket = await endpoint.answer(activations, terms, exchange.id)
        exchange.facts |= {
            "model": endpoint.model.name,
            "version": endpoint.model.version,
            "policy": terms.policy,
            "exits": ticket.exits[:16].tolist(),
            "samples": len(ticket),
            "answer_ms": round(1000 * (ticket.done - ticket.since), 3),
        }
        return ticket

    async def _show_page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def _show_metrics(self, _: Request) -> Response:
        content, kind = self.repository.metrics.render()
        return Response(content, media_type=kind)

    async def _show_api(self, _: Request) -> Response:
        return JSONResponse(self._description)

    # The Open Inference Protocol:

    async def _infer(self, request: Request) -> Response:
        exchange = find_exchange(request.scope)
        with self.repository.enter(*_name(request)) as endpoint:  # refuses before the body is read
            model = endpoint.model
            exchange.model = model.name
            body, length = await request.body(), request.headers.get(HEADER_LENGTH)
            if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
                raise RequestError(f"{HEADER_LENGTH}: expected a number of bytes, got {length!r:.60}")
            is_quick = length is not None and len(body) <= QUICK_BYTES
            most = self.limits.max_body_bytes  # a request may have as many numbers as its body may have bytes
            read = partial(read_infer, body, None if length is None else int(length), max_elements=most)
            given = read() if is_quick else await self._run_aside(read)
            answers.check_known("outputs", given.outputs, answers.OUTPUTS)
            wanted = [*given.outputs] or answers.list_default_outputs(model)
            terms = answers.read_terms(model, given.parameters, exchange.started, bool({*wanted} & {*answers.MAPS}))
            if is_quick and IMAGE not in given.inputs:
                activations = self._make_inputs(model, given)
            else:
                activations = await self._run_aside(self._make_inputs, model, given)
            ticket = await self._answer(request, endpoint, activations, terms)
        outputs = [(name, answers.OUTPUTS[name].write(model, ticket)) for name in wanted]
        binary = {name for name in wanted if given.outputs.get(name, given.binary_output)}
        parameters = answers.describe_terms(model, terms)
        write = partial(write_infer, model.name, model.version, given.id, outputs, binary=binary, parameters=parameters)
        content, size = await self._run_aside(write) if model.image_size else write()
        if size is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER_LENGTH: str(size)}, media_type="application/octet-stream")

    async def _take_feedback(self, request: Request) -> Response:
        """Take the labels of a request that was answered before."""
        body = await request.body()
        model = self.repository.find(*_name(request)).model
        find_exchange(request.scope).model = model.name
        if model.adaptive is None or model.adaptive.loss != "disagreement":
            raise RequestError(
                f"{model.name}: expected a model with a limit on disagreement, got another. Fix: serve it with --adapt 0.02."
            )
        name, labels = answers.read_feedback(model, body, self.limits.max_batch)
        known = [model.adaptive.feedback(f"{name}/{i}", label) for i, label in enumerate(labels) if label is not None]
        return JSONResponse({"used": sum(known)})

    def _make_inputs(self, model: ServedModel, given: InferRequest) -> Activations:
        if given.model_name and given.model_name != model.name:
            raise RequestError(f"model_name: the address says {model.name}, the body {given.model_name!r:.60}")
        for array in given.inputs.values():
            self._check_count(len(array) if array.ndim else 0)
        if set(given.inputs) != {model.sample_name}:
            return model.check_arrays(given.inputs)
        samples = _flatten_bytes(given.inputs[model.sample_name], model.sample_name)
        return model.read(samples, self.limits.max_pixels)

    async def _describe_server(self, _: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return JSONResponse({"name": "exitlens", "version": exitlens.__version__, "extensions": extensions})

    async def _tell_live(self, _: Request) -> Response:
        return _tell(live=self.repository.is_alive)  # false once the thread of a model has ended: only a restart cures it

    async def _tell_ready(self, _: Request) -> Response:
        return _tell(ready=self.repository.is_ready)

    async def _tell_model_ready(self, request: Request) -> Response:
        endpoint = self.repository.find(*_name(request))
        return _tell(name=endpoint.model.name, ready=endpoint.is_ready)

    async def _describe_model(self, request: Request) -> Response:
        """Describe a model; a dimension of any size is -1."""
        model = self.repository.find(*_name(request)).model
        inputs = [(x.name, name_datatype(np.empty(0, x.dtype), x.name), (-1, *x.shape)) for x in model.inputs]
        if model.sample_name:
            inputs.append((model.sample_name, "BYTES", (-1,)))
        outputs = [(name, answers.name_type(model, name), answers.shape_output(model, name)) for name in answers.OUTPUTS]
        tensors = {
            side: [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in rows]
            for side, rows in (("inputs", inputs), ("outputs", outputs))
        }
        return JSONResponse({"name": model.name, "versions": [model.version], "platform": "exitlens", **tensors})

    # For people:

    async def _describe_models(self, _: Request) -> Response:
        """Describe every model with its policies, and what they promise."""
        models = [self.repository.find(name).model for name in self.repository.names]
        facts = [
            {
                "name": model.name,
                "version": model.version,
                "takes": model.info.modality.plural,
                "classes": list(model.info.classes) or model.info.num_classes,
                "cost": list(model.cost),
                "policies": {
                    name: {
                        "thresholds": policy.to_dict()["thresholds"],
                        "score": policy.score,
                        "certificate": policy.certificate(),
                    }
                    for name, policy in model.policies.items()
                },
                **({} if model.adaptive is None else {"adaptive": describe_adaptive(model.adaptive)}),
            }
            for model in models
        ]
        return JSONResponse({"models": facts})

    async def _classify(self, request: Request) -> Response:
        """Answer one sample, or several as a form; the classes of an image's pixels also as PNG (``Accept: image/png``)."""
        _, model, ticket = await self._ask(request, is_explanation=False)
        if model.image_size and "image/png" in request.headers.get("accept", ""):
            if len(ticket) > 1:
                raise RequestError(f"file: expected one for a PNG, got {len(ticket)}. Fix: send a request for each.")
            labels = ticket.labels[0].astype(np.uint8 if model.info.num_classes <= 256 else np.uint16)
            picture = await self._run_aside(_save_png, Image.fromarray(labels))
            facts = {"X-Exit": str(ticket.exits[0]), "X-Confidence": f"{ticket.confidence[0]:.6f}"}
            return Response(picture, headers=facts, media_type="image/png")
        rows = [answers.write_row(model, ticket, i) for i in range(len(ticket))]
        answer = {"model": model.name, "version": model.version, **answers.describe_terms(model, ticket.terms)}
        return JSONResponse(answer | (rows[0] if len(rows) == 1 else {"answers": rows}))

    async def _embed(self, request: Request) -> Response:
        """Answer texts with vectors, in the form of OpenAI's embeddings route."""
        exchange, asked = find_exchange(request.scope), answers.read_embedding_request(await request.body())
        self._check_count(len(asked.texts))
        with self.repository.enter(asked.model) as endpoint:
            model = endpoint.model
            exchange.model = model.name
            if model.info.task != "embedding":
                raise RequestError(
                    f"model: {model.name} answers {ANSWERS[model.info.task]}, no vectors. Fix: use /classify."
                )
            terms = answers.read_terms(model, asked.terms, exchange.started, False)
            activations = await self._run_aside(model.read, asked.texts, self.limits.max_pixels)
            ticket = await self._answer(request, endpoint, activations, terms)
        return JSONResponse(await self._run_aside(answers.write_embeddings, model, ticket, asked.packs))

    async def _explain(self, request: Request) -> Response:
        """Show where every exit looked, as PNG or (``Accept: application/json``) as JSON."""
        asked, model, ticket = await self._ask(request, is_explanation=True)
        why, attention, preprocess = None, ticket.maps[0], model.info.preprocess
        assert attention is not None
        if model.net is not None and not ticket.terms.changes_policy:  # else this map is all that is known
            names = model.spec.names
            given: Inputs = dict(zip(names, ticket.activations, strict=True)) if names else ticket.activations[0]
            policy = model.policies[ticket.terms.policy]
            if is_adapted(model, ticket.terms):  # the exit that answered answers again
                reached = float(ticket.thresholds[0]) - 1e-5  # scores may be rounded otherwise
                thresholds = tuple(reached if k == ticket.exits[0] else math.inf for k in range(model.num_exits - 1))
                policy = replace(policy, thresholds=thresholds, calibration=None, binding=None)
            why = (await self._run_aside(explain_batch, model.net, given, policy))[0]
            attention = why.exits[why.answered].attention
        if "application/json" in request.headers.get("accept", ""):
            if why is not None:
                return JSONResponse(why.to_dict() | answers.describe_terms(model, ticket.terms))
            return JSONResponse(answers.write_row(model, ticket, 0) | {"attention": attention.tolist()})
        if not isinstance(preprocess, Preprocess):
            raise RequestError("explain: these inputs have no picture. Fix: ask with Accept: application/json.", 406)
        if why is not None and asked.exit is not None:
            if asked.exit not in {str(view.exit) for view in why.exits}:
                raise RequestError(f"exit: expected 0 to {model.num_exits - 1}, got {asked.exit!r:.60}")
            attention = why.exits[int(asked.exit)].attention

        def draw() -> bytes:
            if why is not None and asked.exit is None:
                picture = draw_strip(why)
            else:
                picture = draw_overlay(draw_image(ticket.activations[0][0], preprocess, side=224), attention)
            return _save_png(picture)

        return Response(await self._run_aside(draw), media_type="image/png")

    async def _ask(self, request: Request, is_explanation: bool) -> tuple[_Asked, ServedModel, Ticket]:
        exchange, query = find_exchange(request.scope), dict(request.query_params)
        asked, name, version = None, query.get("model", ""), query.get("version", "")
        if not name and len(self.repository.names) > 1:  # only the body can name the model
            asked = await self._read_request(request, query, is_explanation)
            name, version = asked.model, asked.version
        with self.repository.enter(name, version) as endpoint:
            model = endpoint.model
            exchange.model = model.name
            if asked is None:
                asked = await self._read_request(request, query, is_explanation)
                self.repository.find(asked.model or model.name, asked.version)
            terms = answers.read_terms(model, asked.terms, exchange.started, is_explanation)
            activations = await self._run_aside(model.read, asked.samples, self.limits.max_pixels)
            return asked, model, await self._answer(request, endpoint, activations, terms)

    async def _read_request(self, request: Request, query: Mapping[str, str], is_explanation: bool) -> _Asked:
        given: dict[str, Any] = dict(query)
        kind, most = request.headers.get("content-type", "").partition(";")[0].strip().lower(), self.limits.max_batch
        samples: list[Sample] = []
        if kind == "multipart/form-data":
            async with request.form(max_files=most, max_fields=most) as form:
                for name, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        samples.append(await value.read())
                    elif name == "text":
                        samples.append(value)
                    else:
                        given[name] = value
            if not samples:
                raise RequestError("file: expected a file or text in the form, got none")
        else:
            read = partial(_read_body, await request.body(), kind, given)
            is_quick = kind != "application/json" or len(await request.body()) <= QUICK_JSON_BYTES
            samples.append(read() if is_quick else await self._run_aside(read))
        if len(samples) > 1 and is_explanation:
            raise RequestError(f"file: expected one, got {len(samples)}. Fix: send a request for each.")
        self._check_count(len(samples))
        model, version = (str(given.pop(name, "")) for name in ("model", "version"))
        exit_ = given.pop("exit", None) if is_explanation else None
        return _Asked(samples, model, version, None if exit_ is None else str(exit_), given)


def _make_route(path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
    """Return a route that gives the guard its name: its path, without a version."""
    name = path.replace("/versions/{version}", "")

    async def endpoint(request: Request) -> Response:
        find_exchange(request.scope).route = name
        return await handler(request)

    return Route(path, endpoint, methods=[method])


def _save_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _tell(**facts: str | bool) -> Response:
    return JSONResponse(facts, 200 if all(facts.values()) else 503)


def _name(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _flatten_bytes(array: Array, name: str) -> list[bytes]:
    if array.dtype != object or array.ndim not in (1, 2) or array.size != len(array):
        raise RequestError(f"{name}: expected BYTES of shape (B) or (B,1), got {array.dtype} of {list(array.shape)}")
    return list(array.reshape(-1))


def _read_body(body: bytes, kind: str, given: dict[str, Any]) -> Sample:
    """Return the sample in a body; parameters beside a text are added to ``given``."""
    if not body:
        raise RequestError("body: expected an image file or a text, got nothing")
    if kind == "text/plain":
        return decode_text(body)
    if kind != "application/json":
        return body
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body: expected JSON, got something else ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        expected = '{"text": "..."}, with parameters beside it; images come as they are, or as a form'
        raise RequestError(f"body: expected {expected}")
    text: str = values.pop("text")
    given |= values
    return text
