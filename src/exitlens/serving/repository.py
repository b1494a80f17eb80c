"""Models by name: each takes requests, and a new version of its bundle replaces it without losing any."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exitlens.delivery.bundle import find_bundle
from exitlens.errors import ExitlensError, InputError, RequestError
from exitlens.model.cutting.stage import Activations
from exitlens.serving.batcher import Batcher
from exitlens.serving.cascade import Terms, Ticket
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import ServedModel, open_bundle, read_version
from exitlens.serving.settings import Batching, Watching
from exitlens.serving.watching import Watch

LOG = logging.getLogger("exitlens.serving")


class Endpoint:
    """One version of a model, which takes requests."""

    def __init__(self, model: ServedModel, batching: Batching, watching: Watching, metrics: Metrics) -> None:
        self.model, self.metrics = model, metrics
        self.watch = Watch(model, metrics, watching)
        self.batcher = Batcher(model, batching, self._deliver, self._count_step, self.watch.run_idle)
        self.batcher.start()
        metrics.set_version(model.name, model.version)

    @property
    def is_ready(self) -> bool:
        """True if it answers and its samples have not drifted too far."""
        drifting = self.watch.is_drifting and self.watch.watching.unready_on_drift
        return self.batcher.is_alive and not drifting

    async def answer(self, activations: Activations, terms: Terms) -> Ticket:
        """Return a request with its answers; raises :class:`RequestError` if there is no room, or no answer."""
        future, model = asyncio.get_running_loop().create_future(), self.model
        ticket = Ticket(activations, terms, model.info.num_classes, future, model.gives_labels)
        self.batcher.submit(ticket)
        self.watch.expect(ticket)
        try:
            await ticket.receiver
        except asyncio.CancelledError:  # the client has gone, or its time is up
            self.batcher.abandon(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket

    # On the batcher's thread:

    def _deliver(self, done: list[Ticket]) -> None:
        def finish(futures: list[asyncio.Future[None]]) -> None:
            for future in futures:
                if not future.done():
                    future.set_result(None)

        for loop in {ticket.receiver.get_loop() for ticket in done}:
            futures = [ticket.receiver for ticket in done if ticket.receiver.get_loop() is loop]
            with suppress(RuntimeError):  # nobody waits in a loop that is closed
                loop.call_soon_threadsafe(finish, futures)
        self.metrics.set_waiting(self.model.name, self.batcher.waiting)
        good = [ticket for ticket in done if ticket.error is None]
        exits = [k for ticket in good for k in ticket.exits.tolist()]
        seconds = [ticket.done - ticket.since for ticket in good for _ in range(len(ticket))]
        self.metrics.observe_answers(self.model.name, exits, seconds)
        self.watch.see(done)

    def _count_step(self, stage: int, count: int, seconds: float) -> None:
        self.metrics.observe_step(self.model.name, stage, count, seconds)
        self.metrics.set_waiting(self.model.name, self.batcher.waiting)


class Repository:
    """Models by name, each of which can be replaced while it answers.

    ``directories`` are bundles by the names of their models; ``models`` are networks in memory, which are never reloaded.
    Raises :class:`BundleError` or :class:`PolicyError` for a bundle that cannot be read or has no policy.
    """

    def __init__(
        self,
        directories: Mapping[str, Path],
        batching: Batching | None = None,
        watching: Watching | None = None,
        metrics: Metrics | None = None,
        models: Mapping[str, ServedModel] | None = None,
    ) -> None:
        self.batching, self.watching = batching or Batching(), watching or Watching()
        self.metrics = Metrics() if metrics is None else metrics
        self._directories = dict(directories)
        self._read = {name: _fingerprint(path) for name, path in directories.items()}  # the last that were tried
        self._closing, self._lock = False, threading.Lock()
        opened = {name: open_bundle(name, path) for name, path in directories.items()} | dict(models or {})
        if not opened:
            raise InputError("models: expected one or more, got none")
        self._endpoints = {name: self._open(model) for name, model in opened.items()}

    def _open(self, model: ServedModel) -> Endpoint:
        return Endpoint(model, self.batching, self.watching, self.metrics)

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._endpoints)

    @property
    def is_alive(self) -> bool:
        """True if every model answers."""
        return self._closing or all(endpoint.batcher.is_alive for endpoint in self._endpoints.values())

    @property
    def is_ready(self) -> bool:
        """True if every model is ready."""
        return not self._closing and all(endpoint.is_ready for endpoint in self._endpoints.values())

    def note_lag(self, seconds: float) -> None:
        """Note how long requests wait for the event loop before they come here: they count it as waiting."""
        for endpoint in self._endpoints.values():
            endpoint.batcher.lag = seconds

    def find(self, name: str = "", version: str = "") -> Endpoint:
        """Return a model by its name, which may be left out if there is only one; raises :class:`RequestError` (404)."""
        if not name and len(self._endpoints) == 1:
            name = next(iter(self._endpoints))
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise RequestError(f"model: expected one of {self.names}, got {name!r:.60}", 404)
        if version and version != endpoint.model.version:
            raise RequestError(f"version: {name} has version {endpoint.model.version}, not {version!r:.60}", 404)
        return endpoint

    @contextmanager
    def enter(self, name: str = "", version: str = "") -> Iterator[Endpoint]:
        """Find the model that is to answer a request, and keep this version of it open until it has.

        Room is checked before the body of the request is read, and for all its samples once they are known. Raises
        :class:`RequestError`: 404 for an unknown model, 429 if it has no room, 503 if it is closed.
        """
        with self._lock:
            endpoint = self.find(name, version)
            endpoint.batcher.expect()
        try:
            yield endpoint
        finally:
            endpoint.batcher.release()

    def reload(self) -> list[str]:
        """Replace the models whose bundles have changed, and return their names.

        A bundle that cannot be read, or has no policy, is logged, and the version before goes on answering. It is tried
        again when its files change, as they do while a bundle is being copied.
        """
        replaced = []
        for name, path in self._directories.items():
            seen = _fingerprint(path)
            if not seen or seen == self._read[name]:
                continue
            self._read[name] = seen
            if seen[0] == self._endpoints[name].model.version:
                continue
            try:
                fresh = self._open(open_bundle(name, path))
            except ExitlensError as error:
                LOG.error("%s: the new version is not used: %s", name, error)
                continue
            with self._lock:
                if self._closing:
                    fresh.batcher.close()
                    break
                before, self._endpoints[name] = self._endpoints[name], fresh
            LOG.warning("%s: version %s replaces %s", name, fresh.model.version, before.model.version)
            threading.Thread(target=before.batcher.close, daemon=True).start()
            replaced.append(name)
        return replaced

    def close(self) -> None:
        """Stop being ready, answer what was taken in, and end."""
        with self._lock:
            self._closing = True
        for endpoint in self._endpoints.values():
            endpoint.batcher.close()


def _fingerprint(directory: Path) -> tuple[Any, ...]:
    """Return the version of a bundle with its files' sizes and times; empty if there is none."""
    try:
        source = find_bundle(directory)
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.iterdir())
        return read_version(source), files
    except (ExitlensError, OSError):
        return ()
