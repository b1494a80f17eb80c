"""Models by name: each takes requests, and is replaced by a new version of its bundle without losing any."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from exitlens.delivery.bundle import find_bundle
from exitlens.errors import ExitlensError, InputError, RequestError
from exitlens.model.cutting.stage import Activations
from exitlens.serving.batching.batcher import Batcher, ClosedError, Hooks
from exitlens.serving.batching.tickets import Terms, Ticket
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import ServedModel, open_bundle, read_version
from exitlens.serving.settings import Batching, Watching
from exitlens.serving.watching import Watch

LOG = logging.getLogger("exitlens.serving")
Prepare = Callable[[ServedModel], Awaitable[tuple[Activations, Terms]]]


class Endpoint:
    """One version of a model, which takes requests."""

    def __init__(self, model: ServedModel, batching: Batching, watching: Watching, metrics: Metrics) -> None:
        self.model, self.metrics = model, metrics
        self.watch = Watch(model, metrics, watching)
        self.batcher = Batcher(model, Hooks(self._deliver, self._count_step, self.watch.run_idle), batching)
        self.batcher.start()
        metrics.set_version(model.name, model.version)

    @property
    def is_ready(self) -> bool:
        """Whether it answers, and is to."""
        drifting = self.watch.is_drifting and self.watch.watching.unready_on_drift
        return self.batcher.is_alive and not drifting

    async def answer(self, activations: Activations, terms: Terms) -> Ticket:
        """The answers to a request; raises :class:`RequestError` where there is no room, or no answer."""
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
        for loop in {ticket.receiver.get_loop() for ticket in done}:
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(_finish, [ticket for ticket in done if ticket.receiver.get_loop() is loop])
        self.metrics.set_waiting(self.model.name, self.batcher.waiting)
        good = [ticket for ticket in done if ticket.error is None]
        exits = [k for ticket in good for k in ticket.exits.tolist()]
        seconds = [ticket.done - ticket.since for ticket in good for _ in range(len(ticket))]
        self.metrics.observe_answers(self.model.name, exits, seconds)
        self.watch.see(done)

    def _count_step(self, stage: int, count: int, seconds: float) -> None:
        self.metrics.observe_step(self.model.name, stage, count, seconds)
        self.metrics.set_waiting(self.model.name, self.batcher.waiting)


def _finish(done: list[Ticket]) -> None:
    for ticket in done:
        if not ticket.receiver.done():
            ticket.receiver.set_result(None)


class Repository:
    """Models by name.

    Args:
        directories: of bundles, by the names of the models.
        models: networks in memory, for programs that serve their own; these are not read again.

    Raises:
        BundleError, PolicyError: for a bundle that cannot be read or has no policy.
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
        self._read = {name: _look(path) for name, path in directories.items()}  # tried, whether or not it could be
        self._closing, self._lock = False, threading.Lock()
        opened = {name: open_bundle(name, path) for name, path in directories.items()} | dict(models or {})
        if not opened:
            raise InputError("models: expected one or more")
        self._endpoints = {name: self._open(model) for name, model in opened.items()}

    def _open(self, model: ServedModel) -> Endpoint:
        return Endpoint(model, self.batching, self.watching, self.metrics)

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self._endpoints)

    @property
    def is_alive(self) -> bool:
        """Whether every model answers."""
        return self._closing or all(one.batcher.is_alive for one in self._endpoints.values())

    @property
    def is_ready(self) -> bool:
        """Whether every model is."""
        return not self._closing and all(one.is_ready for one in self._endpoints.values())

    def note_lag(self, seconds: float) -> None:
        """How long requests have waited for their turn before any of this was asked: it counts when room is looked for."""
        for endpoint in self._endpoints.values():
            endpoint.batcher.lag = seconds

    def find(self, name: str = "", version: str = "") -> Endpoint:
        """A model by its name (which may be left out if there is one only); raises :class:`RequestError` (404)."""
        if not name and len(self._endpoints) == 1:
            name = next(iter(self._endpoints))
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise RequestError(f"model: expected one of {self.names}, got {name!r:.60}", 404)
        if version and version != endpoint.model.version:
            raise RequestError(f"version: {name} has version {endpoint.model.version}, not {version!r:.60}", 404)
        return endpoint

    async def answer(self, name: str, version: str, prepare: Prepare) -> tuple[ServedModel, Ticket]:
        """The answers to a request, by the version that is there when it is read; raises what keeps it from them.

        ``prepare`` makes a model's inputs and terms of the request: again where the model is replaced meanwhile.
        """
        while True:
            endpoint = self.find(name, version)
            activations, terms = await prepare(endpoint.model)
            try:
                return endpoint.model, await endpoint.answer(activations, terms)
            except ClosedError:
                if self.find(name, version) is endpoint:
                    raise

    def reload(self) -> list[str]:
        """Replaces the models whose bundles have changed, and returns their names; blocks for as long as that takes.

        A bundle that cannot be read, or has no policy, is logged, and the version before goes on answering. It is tried
        again when its files change, as those of a bundle do that is still being copied.
        """
        replaced = []
        for name, path in self._directories.items():
            seen = _look(path)
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
        """Not ready any more; answers what was taken in, and ends."""
        with self._lock:
            self._closing = True
        for endpoint in self._endpoints.values():
            endpoint.batcher.close()


def _look(directory: Path) -> tuple[Any, ...]:
    """The version of the bundle that is there now, and how its files look; empty where there is none."""
    try:
        source = find_bundle(directory)
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.iterdir())
        return read_version(source), files
    except (ExitlensError, OSError):
        return ()
