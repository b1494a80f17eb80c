"""The ASGI app: all routes behind the guard, their description, and what starts and ends with the app."""

from __future__ import annotations

import asyncio
import json
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
from exitlens.serving.http.service import Service, make_route
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
    page, description = _read_resource("page.html"), describe_api(repository.names)

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    async def show_metrics(_: Request) -> Response:
        content, kind = repository.metrics.render()
        return Response(content, media_type=kind)

    async def show_api(_: Request) -> Response:
        return JSONResponse(description)

    return [make_route("/", show_page), make_route("/metrics", show_metrics), make_route("/openapi.json", show_api)]


def describe_api(models: Sequence[str]) -> dict[str, Any]:
    """Return the routes as an OpenAPI 3.1 description, from which clients can be generated."""
    description: dict[str, Any] = json.loads(_read_resource("openapi.json"))
    description["info"]["version"] = exitlens.__version__
    description["components"]["parameters"]["model"]["schema"]["enum"] = list(models)
    return description


def _read_resource(name: str) -> str:
    return resources.files("exitlens.serving.http").joinpath(name).read_text(encoding="utf-8")
