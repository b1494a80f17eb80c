"""The ASGI app: all routes behind the guard, their description, and what starts and ends with the app."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import exitlens
from exitlens.serving.http.guard import Guard
from exitlens.serving.http.inference import InferenceRoutes
from exitlens.serving.http.people import PeopleRoutes
from exitlens.serving.http.service import DEFAULT_OUTPUTS, OUTPUTS, Service, make_route
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits

LOG = logging.getLogger("exitlens.serving")
TICK, FADING = 0.02, 0.8  # seconds between looks at the event loop's lag, and what is left of it at the next
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def make_app(
    repository: Repository,
    limits: Limits | None = None,
    *,
    log: Callable[[dict[str, Any]], None] | None = None,
    reload_seconds: float = 0.0,
) -> Starlette:
    """Return the app that answers with these models; any ASGI server runs it. When it ends, the repository is closed.

    Args:
        repository: the models.
        limits: how much a client may ask.
        log: takes a record for every request; ``None`` means no access log.
        reload_seconds: how often bundles are looked at for a new version; 0 means never.
    """
    service = Service(repository, limits or Limits())

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
        service.threads.shutdown(wait=False)

    return Starlette(
        routes=[*InferenceRoutes(service).list_routes(), *PeopleRoutes(service).list_routes(), *_list_others(repository)],
        middleware=[Middleware(Guard, limits=service.limits, metrics=repository.metrics, log=log)],
        exception_handlers={HTTPException: _answer_unknown},
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
        except Exception:  # such as no memory: the versions that are there go on
            LOG.exception("the bundles could not be looked at")


async def _answer_unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{error.detail}: see /openapi.json"}, error.status_code, headers=error.headers)


def _list_others(repository: Repository) -> list[Route]:
    """Return the routes of the metrics, the description of all routes, and the page to try them."""
    page = resources.files("exitlens.serving.http").joinpath("page.html").read_text(encoding="utf-8")
    description = describe_api(repository.names)

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    async def show_metrics(_: Request) -> Response:
        content, kind = repository.metrics.render()
        return Response(content, media_type=kind)

    async def show_api(_: Request) -> Response:
        return JSONResponse(description)

    return [make_route("/", show_page), make_route("/metrics", show_metrics), make_route("/openapi.json", show_api)]


# The description of the routes, from which clients can be generated

_JSON = "application/json"
_ERROR = {
    "description": "What was wrong, and what to do.",
    "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERRORS = {
    "400": _ERROR,
    "404": _ERROR,
    "413": _ERROR,
    "422": _ERROR,
    "429": {**_ERROR, "description": "No room: try again after `Retry-After` seconds."},
    "503": _ERROR,
    "504": {**_ERROR, "description": "The deadline passed before the first exit could answer."},
}
_TERMS = {
    "policy": ("string", "A policy of the bundle by its name; `default` is its own."),
    "max_cost": ("number", "Leave at the last exit that costs no more, as a fraction of the plain backbone's."),
    "min_confidence": ("number", "Early exits answer only if they are at least this sure, too."),
    "deadline_ms": ("number", "The best answer there is after so many milliseconds, marked as limited."),
}
_ANSWER: dict[str, tuple[Any, str]] = {
    "class": ("string", "Name of the class; of several labels all that it has, with ; between."),
    "label": (["integer", "array"], "Number of the class; of several labels the numbers of all that it has."),
    "confidence": ("number", "The policy's score at the exit that answered."),
    "exit": ("integer", "The exit that answered, from 0."),
    "exits": ("integer", "How many exits the network has."),
    "cost": ("number", "As a fraction of the plain backbone's."),
    "probabilities": ("object", "The most probable classes."),
    "reason": ("string", "Why this exit answered."),
    "limited": ("boolean", "The request's own limits ended it, not the policy."),
    "ms": ("number", "Milliseconds from when it was read to its answer."),
    "policy": ("string", "The policy it was answered under."),
    "promise": ("string", "`certified`, `calibrated`, or `none` and why."),
    "model": ("string", "Name of the model."),
    "version": ("string", "Names the contents of its bundle."),
}


def describe_api(models: Sequence[str]) -> dict[str, Any]:
    """Return the description in OpenAPI 3.1, JSON-ready."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "exitlens",
            "version": exitlens.__version__,
            "description": "Classifiers that answer early when they can, and show why.",
        },
        "paths": _list_people(models) | _list_protocol(),
        "components": {
            "schemas": {
                "Error": _make_object({"error": ("string", "What was wrong, and what to do.")}),
                "Answer": _make_object(_ANSWER),
                "Infer": {"type": "object", "description": "See the Open Inference Protocol, version 2."},
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _make_object(fields: dict[str, tuple[str, str]]) -> dict[str, Any]:
    described = {name: {"type": kind, "description": text} for name, (kind, text) in fields.items()}
    return {"type": "object", "properties": described}


def _list_people(models: Sequence[str]) -> dict[str, Any]:
    named = {"name": "model", "in": "query", "schema": {"type": "string", "enum": list(models)}}
    terms = [
        {"name": name, "in": "query", "schema": {"type": kind}, "description": text} for name, (kind, text) in _TERMS.items()
    ]
    file = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}, "text": {"type": "string"}}}
    body = {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": file},
            "text/plain": {"schema": {"type": "string"}},
            _JSON: {"schema": _make_object({"text": ("string", "To classify."), **_TERMS})},
        },
    }
    shared = {"parameters": [named, *terms], "requestBody": body}
    picture = {"image/png": {"schema": {"type": "string", "format": "binary"}}, _JSON: {"schema": {"type": "object"}}}
    exit_ = {"name": "exit", "in": "query", "schema": {"type": "integer"}, "description": "This exit's picture alone."}
    return {
        "/classify": {"post": _make_operation("Classify an image file or a text", _refer("Answer"), **shared)},
        "/explain": {
            "post": _make_operation("Where every exit looked", picture, parameters=[named, exit_, *terms], requestBody=body)
        },
        "/models": {
            "get": _make_operation("Models, their policies, and what they promise", {_JSON: {"schema": {"type": "object"}}})
        },
        "/metrics": {"get": _make_operation("Metrics for Prometheus", {"text/plain": {"schema": {"type": "string"}}})},
    }


def _list_protocol() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, text in (
        ("/v2", "Metadata of the server"),
        ("/v2/health/live", "True while the server runs"),
        ("/v2/health/ready", "True while every model is ready"),
    ):
        paths[path] = {"get": _make_operation(text, _refer("Infer"))}
    names = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = {**names, "name": "version"}
    outputs = ", ".join(f"`{name}` ({text.meaning})" for name, text in OUTPUTS.items())
    infer = (
        "Open Inference Protocol, version 2, with the binary tensor extension. The parameters of a request may be "
        f"{', '.join(f'`{name}`' for name in _TERMS)}. Outputs: {outputs}; without any named, {', '.join(DEFAULT_OUTPUTS)}."
    )
    for path, given in (("/v2/models/{name}", [names]), ("/v2/models/{name}/versions/{version}", [names, version])):
        paths[path] = {"get": _make_operation("Metadata of a model", _refer("Infer"), parameters=given)}
        paths[f"{path}/ready"] = {"get": _make_operation("True while a model is ready", _refer("Infer"), parameters=given)}
        body = {"required": True, "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Infer"}}}}
        operation = _make_operation("Infer", _refer("Infer"), parameters=given, requestBody=body, description=infer)
        paths[f"{path}/infer"] = {"post": operation}
    return paths


def _refer(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _make_operation(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, **more, "responses": {"200": {"description": "The answer.", "content": content}, **_ERRORS}}
