"""The ASGI app: all routes behind the guard, and what starts and ends with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from exitlens.serving.http.guard import Guard
from exitlens.serving.http.infer import InferApp, Shortcut
from exitlens.serving.http.openapi import describe_api
from exitlens.serving.http.people import PeopleRoutes
from exitlens.serving.http.protocol_routes import ProtocolRoutes
from exitlens.serving.http.requests import Service, note
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits

LOG = logging.getLogger("exitlens.serving")
TICK, FADING = 0.02, 0.8  # seconds between looks at the event loop's lag, and what is left of it at the next


def make_app(
    repository: Repository,
    limits: Limits | None = None,
    *,
    log: Callable[[dict[str, Any]], None] | None = None,
    reload_seconds: float = 0.0,
) -> Starlette:
    """The app that answers by these models; any ASGI server runs it. When it ends, the repository is closed.

    Args:
        repository: of the models.
        limits: how much a client may ask.
        log: takes a record for every request; ``None``: no access log.
        reload_seconds: how often bundles are looked at for a new version; 0: never.
    """
    service = Service(repository, limits or Limits())
    infer = InferApp(service)

    @asynccontextmanager
    async def live(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_note_lag(service))]
        if reload_seconds:
            tasks.append(asyncio.create_task(_reload(service, reload_seconds)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(repository.close)
        service.threads.shutdown(wait=False)

    return Starlette(
        routes=[
            *ProtocolRoutes(service, infer).list_routes(),
            *PeopleRoutes(service).list_routes(),
            *_list_own(service),
        ],
        middleware=[
            Middleware(Guard, limits=service.limits, metrics=repository.metrics, log=log),
            Middleware(Shortcut, infer=infer),
        ],
        exception_handlers={HTTPException: _answer_unknown},
        lifespan=live,
    )


async def _note_lag(service: Service) -> None:
    """Measures how late the event loop is: that long a request has waited before it is seen."""
    lag = 0.0
    while True:
        started = time.monotonic()
        await asyncio.sleep(TICK)
        lag = max(time.monotonic() - started - TICK, FADING * lag)
        service.repository.note_lag(lag)


async def _reload(service: Service, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(service.repository.reload)
        except Exception:  # such as no memory: the versions that are there go on
            LOG.exception("the bundles could not be looked at")


async def _answer_unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{error.detail}: see /openapi.json"}, error.status_code, headers=error.headers)


def _list_own(service: Service) -> list[Route]:
    """Metrics, the description of the routes, and the page that shows it."""
    page = resources.files("exitlens.serving.http").joinpath("page.html").read_text(encoding="utf-8")
    described = describe_api(service.repository.names)

    async def show_page(request: Request) -> Response:
        note(request, "/")
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    async def show_metrics(request: Request) -> Response:
        note(request, "/metrics")
        content, kind = service.repository.metrics.render()
        return Response(content, media_type=kind)

    async def show_api(request: Request) -> Response:
        note(request, "/openapi.json")
        return JSONResponse(described)

    return [Route("/", show_page), Route("/metrics", show_metrics), Route("/openapi.json", show_api)]


_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
