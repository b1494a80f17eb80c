"""Runs the app on uvicorn: one process, or several that share a port, each replaced when it ends."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exitlens.errors import InputError, import_extra
from exitlens.serving.batching import Batching
from exitlens.serving.limits import Limits
from exitlens.serving.watching import Watching

if TYPE_CHECKING:
    from uvicorn import Config

LOG = logging.getLogger("exitlens.serving")
SHARED = "PROMETHEUS_MULTIPROC_DIR"
SWITCH_SECONDS = 0.0005  # after which a thread of Python's makes way: the network's and the connections' take turns


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        bundles: directories by the names of their models.
        host, port: where it listens; port 0: any that is free.
        workers: processes, each with the whole network.
        batching, watching, limits: see there.
        reload_seconds: how often bundles are looked at for a new version; 0: never.
        access_log: a line of JSON for every request on standard output.
        tls_cert, tls_key: files in PEM; both or none.
    """

    bundles: Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    batching: Batching = field(default_factory=Batching)
    watching: Watching = field(default_factory=Watching)
    limits: Limits = field(default_factory=Limits)
    reload_seconds: float = 2.0
    access_log: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise InputError("bundles: expected one or more")
        if not isinstance(self.workers, int) or self.workers < 1:
            raise InputError(f"workers: expected a number of 1 or more, got {self.workers!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls_cert, tls_key: expected both or none")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise InputError(f"tls_cert, tls_key: {path} is no file")


def serve(settings: Settings) -> None:
    """Serves until the process is told to end (SIGTERM, SIGINT), then answers what was taken in.

    Raises:
        BundleError, PolicyError: for a bundle that cannot be served. MissingExtraError: without the extra ``serve``.
    """
    uvicorn = import_extra("uvicorn", "serve", "exitlens serve")
    for name in ("starlette", "multipart", "prometheus_client"):
        import_extra(name, "serve", "exitlens serve")
    if settings.workers == 1:
        uvicorn.Server(make_config(settings)).run()
        return
    with tempfile.TemporaryDirectory(prefix="exitlens-metrics-") as folder:
        os.environ[SHARED] = folder
        threads = settings.batching.threads or max(1, (os.cpu_count() or 1) // settings.workers)
        shared = replace(settings, batching=replace(settings.batching, threads=threads))
        _run_workers(make_config(shared))


def _run_workers(config: Config) -> None:
    from prometheus_client.multiprocess import mark_process_dead
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        """Replaces workers that ended, and forgets what they waited for."""

        def keep_subprocess_alive(self) -> None:
            before = {process.pid for process in self.processes}
            super().keep_subprocess_alive()
            for pid in before - {process.pid for process in self.processes}:
                mark_process_dead(pid)  # type: ignore[no-untyped-call]

    Supervisor(config, sockets=[config.bind_socket()]).run()


def make_config(settings: Settings) -> Config:
    """For uvicorn; models are opened when it is loaded, in the process that serves them."""
    from exitlens.serving.workers import WorkerConfig

    return WorkerConfig(settings)
