"""Runs the app on uvicorn: in one process, or in several that share a port and are replaced when they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exitlens.errors import ExitlensError, import_extra
from exitlens.serving.metrics import SHARED, Metrics
from exitlens.serving.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from uvicorn import Config

    from exitlens.serving.http.guard import ConnectionFactory

SWITCH_SECONDS = 0.0005  # after which a thread makes way, so that the network and the connections take turns
KEEP_ALIVE_SECONDS = 75  # longer than proxies and clients keep an idle connection, so that they close it first


def serve(settings: ServerSettings) -> None:
    """Serve until the process is told to end (SIGTERM, SIGINT), then answer what was taken in."""
    uvicorn = import_extra("uvicorn", "serve", "exitlens serve")
    for name in ("httptools", "starlette", "msgspec", "python_multipart", "prometheus_client"):
        import_extra(name, "serve", "exitlens serve")
    if settings.workers == 1:
        uvicorn.Server(make_config(settings)).run()
        return
    with tempfile.TemporaryDirectory(prefix="exitlens-metrics-") as folder:
        os.environ[SHARED] = folder
        threads = settings.batching.threads or max(1, (os.cpu_count() or 1) // settings.workers)
        adapting = replace(settings.adapting, processes=settings.workers)
        if adapting.adapt and adapting.state is None:
            adapting = replace(adapting, state=Path(folder) / "adapting")  # for as long as the server runs
        batching = replace(settings.batching, threads=threads)
        config = make_config(replace(settings, batching=batching, adapting=adapting))
        from prometheus_client.multiprocess import mark_process_dead
        from uvicorn.supervisors import Multiprocess

        class Supervisor(Multiprocess):
            """Replaces workers that ended, and forgets their waiting samples."""

            def keep_subprocess_alive(self) -> None:
                before = {process.pid for process in self.processes}
                super().keep_subprocess_alive()
                for pid in before - {process.pid for process in self.processes}:
                    mark_process_dead(pid)  # type: ignore[no-untyped-call]

        Supervisor(config, sockets=[config.bind_socket()]).run()


def make_config(settings: ServerSettings) -> Config:
    """Return uvicorn's configuration, which can be pickled: models are opened in the process that serves them."""
    from uvicorn import Config

    from exitlens.serving.http.guard import ConnectionFactory

    connections = ConnectionFactory(settings.limits)
    return Config(
        partial(_open_app, settings, connections),
        factory=True,
        http=cast(Any, connections),
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        log_config=None,  # uvicorn's own would close what other code has set up
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.limits.request_seconds) + 1,
        ssl_certfile=None if settings.tls_cert is None else str(settings.tls_cert),
        ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
    )


def _open_app(settings: ServerSettings, connections: ConnectionFactory) -> Starlette:
    """Open the models; in a worker, a bundle that cannot be served ends all workers with a message."""
    from uvicorn.config import STARTUP_FAILURE

    from exitlens.serving.http.application import make_app
    from exitlens.serving.http.guard import write_log
    from exitlens.serving.repository import Repository

    sys.setswitchinterval(SWITCH_SECONDS)
    for name, level in (("uvicorn", logging.INFO), ("exitlens.serving", logging.WARNING)):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.setLevel(level)
            logger.addHandler(_StandardError())
    connections.metrics = Metrics()
    try:
        parts = settings.batching, settings.watching, connections.metrics, settings.adapting
        repository = Repository(settings.bundles, *parts)
    except ExitlensError as error:
        if multiprocessing.parent_process() is None:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(STARTUP_FAILURE)
    log = write_log if settings.access_log else None
    return make_app(repository, settings.limits, log=log, reload_seconds=settings.reload_seconds)


class _StandardError(logging.Handler):
    """Writes a line for each record to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname}: {self.format(record)}\n")
