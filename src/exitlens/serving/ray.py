"""Ray Serve: replicas of the whole network, each with its own router, behind the same routes (extra ``ray``).

``serve run exitlens.serving.ray:app bundle=runs/demo``; ``examples/serving/serve.yaml`` is for ``serve deploy`` and KubeRay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from exitlens.errors import InputError, import_extra, suggest
from exitlens.serving.http.application import make_app
from exitlens.serving.repository import Repository
from exitlens.serving.settings import UNLIMITED, Adapting, Batching, Limits, Watching, name_bundles
from exitlens.types.settings import COUNT, WHOLE, check_numbers

# limits for Ray's proxy to keep, and what the number of replicas says
_LEFT_TO_RAY = "max_header_bytes", "header_seconds", "write_seconds", "max_connections", "processes"
_OPENED: list[Any] = []  # the app of the replica in this process; Ray starts a process for each


@dataclass(frozen=True)
class Replicas:
    """The models of the replicas, and the number of replicas.

    Attributes:
        bundle: DIR or NAME=DIR, several separated by commas.
        cpus: processors of a replica, and its threads.
        replicas: number of replicas; 0 for as many as the current requests need.
        min_replicas, max_replicas: limits for ``replicas=0``.
        reload_seconds: seconds between checks for a new version of a bundle; 0 for never.
    """

    bundle: str = ""
    cpus: int = 1
    replicas: int = 0
    min_replicas: int = 1
    max_replicas: int = 4
    reload_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.bundle:
            raise InputError("bundle: expected DIR or NAME=DIR, got none. Fix: add bundle=runs/x to serve run.")
        name_bundles(self.bundle.split(","))
        check_numbers(self, {"cpus": COUNT, "replicas": WHOLE, "min_replicas": WHOLE, "max_replicas": COUNT})
        check_numbers(self, {"reload_seconds": UNLIMITED})
        if self.min_replicas > self.max_replicas:
            raise InputError(f"min_replicas: expected max_replicas ({self.max_replicas}) or less, got {self.min_replicas}")


class _Late:
    """The app, made in the replica's process; the request's id is left to Ray, which puts it into every answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", ()) if bytes(header[0]).lower() != b"x-request-id"]
                message = {**message, "headers": others}
            await send(message)

        await _OPENED[0](scope, receive, send_on if scope["type"] == "http" else send)


def app(arguments: Mapping[str, Any]) -> Any:
    """Return the application for ``serve run`` and a configuration's ``import_path``.

    A replica is ready when its models are, and has at most two micro-batches of requests (16 or more) at a time. Others
    wait at Ray's proxies, up to ``max_waiting`` at each. Requests beyond that get 503 from the proxy, and requests that
    reach a replica with too many samples get 429 with ``Retry-After``. ``/metrics`` is about the replica that answers it.

    ``arguments`` are the fields of :class:`Replicas`, :class:`Batching`, :class:`Watching`, :class:`Adapting` and
    :class:`Limits`, as text or values, without the limits on connections, which Ray's proxies keep; raises
    :class:`InputError` for others. With ``adapt``, replicas share the folder ``state``, which has places for twice as many
    as may run, because new ones start before old ones end.
    """
    serve = import_extra("ray.serve", "ray", "serving by Ray")
    replicas, batching, watching, adapting, limits = read_arguments(arguments)
    scaling: dict[str, Any] = {"num_replicas": replicas.replicas}
    if not replicas.replicas:
        bounds = {"min_replicas": replicas.min_replicas, "max_replicas": replicas.max_replicas}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": batching.batch}}
    deployment = serve.deployment(
        name="exitlens",
        ray_actor_options={"num_cpus": replicas.cpus},
        max_ongoing_requests=max(2 * batching.batch, 16),
        max_queued_requests=batching.max_waiting,
        graceful_shutdown_timeout_s=limits.request_seconds + 5,
        **scaling,
    )(serve.ingress(_Late())(Replica))
    return deployment.bind(replicas, batching, watching, adapting, limits)


class Replica:
    """One process with all models."""

    def __init__(
        self, replicas: Replicas, batching: Batching, watching: Watching, adapting: Adapting, limits: Limits
    ) -> None:
        bundles = name_bundles(replicas.bundle.split(","))
        self.repository = Repository(bundles, batching, watching, adapting=adapting)
        _OPENED[:] = [make_app(self.repository, limits, reload_seconds=replicas.reload_seconds)]

    def check_health(self) -> None:
        """Raise if the thread of a model has ended, so that Ray replaces the replica."""
        if not self.repository.is_alive:
            raise RuntimeError("the thread of a model has ended")


def read_arguments(arguments: Mapping[str, Any]) -> tuple[Replicas, Batching, Watching, Adapting, Limits]:
    """Return settings from their fields by name, as text or values; raise :class:`InputError`."""
    kinds: tuple[Any, ...] = (Replicas, Batching, Watching, Adapting, Limits)
    owners = {each.name: kind for kind in kinds for each in fields(kind) if each.name not in _LEFT_TO_RAY}
    given: dict[Any, dict[str, Any]] = {kind: {} for kind in kinds}
    for name, value in arguments.items():
        if name not in owners:
            known = ", ".join(owners)
            raise InputError(f"arguments: expected some of {known}, got {name!r:.60}.{suggest(name[:20], owners)}")
        kind = Path if name == "state" else type(getattr(owners[name], name))
        try:  # without rounding or guessing
            converted = (Path(value) if value else None) if kind is Path else msgspec.convert(value, kind, strict=False)
            given[owners[name]][name] = converted
        except (msgspec.ValidationError, TypeError) as error:
            raise InputError(f"{name}: expected {kind.__name__}, got {value!r:.60}") from error
    replicas = Replicas(**given[Replicas])
    batching = Batching(**{"threads": replicas.cpus} | given[Batching])
    adapting = Adapting(processes=2 * (replicas.replicas or replicas.max_replicas), **given[Adapting])
    if adapting.adapt and adapting.state is None:
        raise InputError("state: expected a folder that all replicas reach, got none. Fix: add state=/shared/adapting.")
    return replicas, batching, Watching(**given[Watching]), adapting, Limits(**given[Limits])
