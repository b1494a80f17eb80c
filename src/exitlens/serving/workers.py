"""uvicorn's configuration of one process that serves: its models, its app, and its limits on connections."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from typing import Any

from uvicorn.config import STARTUP_FAILURE, Config

from exitlens.errors import ExitlensError
from exitlens.serving.http.app import make_app
from exitlens.serving.http.connections import make_protocol
from exitlens.serving.http.guard import write_log
from exitlens.serving.metrics import Metrics
from exitlens.serving.repository import Repository
from exitlens.serving.settings import ServerSettings

SWITCH_SECONDS = 0.0005  # after which a thread makes way: the network's and the connections' take turns
KEEP_ALIVE_SECONDS = 75  # longer than proxies and clients keep an idle connection, so that they are the ones to close it


class WorkerConfig(Config):
    """Picklable, because workers get it before they open their models."""

    def __init__(self, settings: ServerSettings) -> None:
        limits = settings.limits
        super().__init__(
            _no_app,
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
            timeout_graceful_shutdown=int(limits.request_seconds) + 1,
            ssl_certfile=None if settings.tls_cert is None else str(settings.tls_cert),
            ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
        )
        self.settings = settings

    def load(self) -> None:
        """Opens the models; in a worker, a bundle that cannot be served ends all of them with a message."""
        sys.setswitchinterval(SWITCH_SECONDS)
        speak()
        own, metrics = self.settings, Metrics()
        try:
            repository = Repository(own.bundles, own.batching, own.watching, metrics)
        except ExitlensError as error:
            if multiprocessing.parent_process() is None:
                raise
            sys.stderr.write(f"error: {error}\n")
            sys.exit(STARTUP_FAILURE)
        log = write_log if own.access_log else None
        self.app: Any = make_app(repository, own.limits, log=log, reload_seconds=own.reload_seconds)
        super().load()
        self.http_protocol_class = make_protocol(own.limits, metrics)


class Speaker(logging.Handler):
    """Writes a line for each record to whatever standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one."""
        sys.stderr.write(f"{record.levelname}: {self.format(record)}\n")


def speak() -> None:
    """Lets uvicorn, and warnings of the server's own, be seen on standard error."""
    for name, level in (("uvicorn", logging.INFO), ("exitlens.serving", logging.WARNING)):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.setLevel(level)
            logger.addHandler(Speaker())


async def _no_app(*_: Any) -> None:
    """In place of the app until it is made."""
