"""Runs the app on uvicorn: one process, or several that share a port, each replaced when it ends."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

from exitlens.errors import import_extra
from exitlens.serving.metrics import SHARED
from exitlens.serving.settings import ServerSettings

if TYPE_CHECKING:
    from uvicorn import Config


def serve(settings: ServerSettings) -> None:
    """Serves until the process is told to end (SIGTERM, SIGINT), then answers what was taken in.

    Raises:
        BundleError, PolicyError: for a bundle that cannot be served. MissingExtraError: without the extra ``serve``.
    """
    uvicorn = import_extra("uvicorn", "serve", "exitlens serve")
    for name in ("starlette", "python_multipart", "prometheus_client"):
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


def make_config(settings: ServerSettings) -> Config:
    """For uvicorn; models are opened when it is loaded, in the process that serves them."""
    from exitlens.serving.workers import WorkerConfig

    return WorkerConfig(settings)
