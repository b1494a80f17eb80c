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

import exitlens
from exitlens.serving.http.guard import Guard
from exitlens.serving.http.routes import Routes, make_route
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits

LOG = logging.getLogger("exitlens.serving")
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
    routes, page, description = Routes(repository, limits), _read_resource("page.html"), describe_api(repository.names)

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    async def show_metrics(_: Request) -> Response:
        content, kind = repository.metrics.render()
        return Response(content, media_type=kind)

    async def show_api(_: Request) -> Response:
        return JSONResponse(description)

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

    others = (("/", show_page), ("/metrics", show_metrics), ("/openapi.json", show_api))
    return Starlette(
        routes=[*routes.list_routes(), *(make_route(path, handler) for path, handler in others)],
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
    """Return the routes as an OpenAPI 3.1 description, from which clients can be generated."""
    description: dict[str, Any] = json.loads(_read_resource("openapi.json"))
    description["info"]["version"] = exitlens.__version__
    description["components"]["parameters"]["model"]["schema"]["enum"] = list(models)
    return description


def _read_resource(name: str) -> str:
    return resources.files("exitlens.serving.http").joinpath(name).read_text(encoding="utf-8")
