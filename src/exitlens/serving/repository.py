"""Models by name: each takes requests, and a new version of its bundle replaces it without losing any."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exitlens.delivery.bundle import find_bundle
from exitlens.errors import ExitlensError, InputError, RequestError
from exitlens.model.engine.journal import NoPlaceError
from exitlens.serving.endpoint import Endpoint
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import ServedModel, adapt, open_bundle, read_version
from exitlens.serving.settings import Adapting, Batching, Watching

LOG = logging.getLogger("exitlens.serving")


class Repository:
    """Models by name, each of which can be replaced while it answers.

    ``models`` are directories of bundles, or networks in memory, which are never reloaded. Raises :class:`BundleError` or
    :class:`PolicyError` for a bundle that cannot be read or has no policy.
    """

    def __init__(
        self,
        models: Mapping[str, Path | ServedModel],
        batching: Batching | None = None,
        watching: Watching | None = None,
        metrics: Metrics | None = None,
        adapting: Adapting | None = None,
    ) -> None:
        if not models:
            raise InputError("models: expected one or more, got none")
        self.batching, self.watching = batching or Batching(), watching or Watching()
        self.adapting, self.metrics = adapting or Adapting(), Metrics() if metrics is None else metrics
        self._directories = {name: source for name, source in models.items() if isinstance(source, Path)}
        self._read = {name: _fingerprint(path) for name, path in self._directories.items()}  # the last that were tried
        self._closing, self._lock = False, threading.Lock()
        opened = [open_bundle(name, source) if isinstance(source, Path) else source for name, source in models.items()]
        self._endpoints = dict(zip(models, map(self._start, opened), strict=True))

    def _start(self, model: ServedModel) -> Endpoint:
        return Endpoint(adapt(model, self.adapting), self.batching, self.watching, self.metrics)

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._endpoints)

    @property
    def is_alive(self) -> bool:
        """True if every model answers."""
        return self._closing or all(endpoint.is_alive for endpoint in self._endpoints.values())

    @property
    def is_ready(self) -> bool:
        """True if every model is ready."""
        return not self._closing and all(endpoint.is_ready for endpoint in self._endpoints.values())

    def note_lag(self, seconds: float) -> None:
        """Note how long requests wait for the event loop before they come here: they count it as waiting."""
        for endpoint in self._endpoints.values():
            endpoint.lag = seconds

    def find(self, name: str = "", version: str = "") -> Endpoint:
        """Return a model by its name, which may be left out if there is only one; raise :class:`RequestError` (404)."""
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

        Raises :class:`RequestError`: 404 for an unknown model, 429 if it has no room, 503 if it is closed.
        """
        with self._lock:
            endpoint = self.find(name, version)
            endpoint.expect()
        try:
            yield endpoint
        finally:
            endpoint.release()

    def reload(self) -> list[str]:
        """Replace the models whose bundles have changed, and return their names.

        A bundle that cannot be read is logged, and tried again when its files change, as they do while it is being copied.
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
                fresh = self._start(open_bundle(name, path))
            except ExitlensError as error:
                LOG.error("%s: the new version is not used: %s", name, error)
                if isinstance(error, NoPlaceError):  # until the version that still answers with this journal has ended
                    self._read[name] = ()
                continue
            with self._lock:
                if self._closing:
                    fresh.close()
                    break
                before, self._endpoints[name] = self._endpoints[name], fresh
            LOG.warning("%s: version %s replaces %s", name, fresh.model.version, before.model.version)
            threading.Thread(target=before.close, daemon=True).start()
            replaced.append(name)
        return replaced

    def close(self) -> None:
        """Stop being ready, answer what was taken in, and end."""
        with self._lock:
            self._closing = True
        for endpoint in self._endpoints.values():
            endpoint.close()


def _fingerprint(directory: Path) -> tuple[Any, ...]:
    """Return the version of a bundle with its files' sizes and times; empty if there is none."""
    try:
        source = find_bundle(directory)
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.iterdir())
        return read_version(source), files
    except (ExitlensError, OSError):
        return ()
