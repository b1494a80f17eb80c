"""Ray Serve: replicas of the whole network, each with its own router, behind the same routes (extra ``ray``).

::

    serve run exitlens.serving.ray:app bundle=runs/demo

``examples/serving/serve.yaml`` is a configuration for ``serve deploy`` and KubeRay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from exitlens.errors import InputError, import_extra, suggest
from exitlens.serving.http.application import make_app
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Batching, Limits, Watching, name_bundles

_PARTS = {"batching": Batching, "watching": Watching, "limits": Limits}
_OWN = {"bundle": "", "cpus": 1, "replicas": 0, "min_replicas": 1, "max_replicas": 4, "reload_seconds": 2.0}
_LEAST = {"cpus": 1, "replicas": 0, "min_replicas": 0, "max_replicas": 1, "reload_seconds": 0}
_OF_CONNECTIONS = ("max_header_bytes", "header_seconds", "write_seconds", "max_connections")  # which Ray's proxy holds
_OPENED: list[Any] = []  # the app of the replica in this process: Ray gives every replica one of its own


class _Late:
    """The app, which is made where the replica is; the request's id is left to Ray, which names it in every answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", ()) if bytes(header[0]).lower() != b"x-request-id"]
                message = {**message, "headers": others}
            await send(message)

        await _OPENED[0](scope, receive, send_on if scope["type"] == "http" else send)


def app(arguments: Mapping[str, Any]) -> Any:
    """Return the application that ``serve run`` and a configuration's ``import_path`` name.

    A replica is ready when its models are, and has at most two micro-batches of requests (16 or more) at a time. Others
    wait at Ray's proxies, at each as many as ``max_waiting``; what is beyond that gets 503 from the proxy, and what finds a
    replica with too many samples 429 with ``Retry-After`` from there. ``/metrics`` tells of the replica that answers it.

    Args:
        arguments: ``bundle`` (DIR or NAME=DIR, several parted by commas); ``cpus`` of a replica, which are its threads, too;
            ``replicas``, or ``min_replicas`` and ``max_replicas`` to scale between by the requests that are under way;
            ``reload_seconds``; and whatever :class:`Batching`, :class:`Watching` and :class:`Limits` have, but for limits on
            connections, which Ray's proxies hold.

    Raises:
        InputError: for an unknown argument or a bad value. MissingExtraError: without the extra ``ray``.
    """
    serve = import_extra("ray.serve", "ray", "serving by Ray")
    own, parts = read_arguments(arguments)
    batching: Batching = parts["batching"]
    busy = max(2 * batching.batch, 16)
    scaling: dict[str, Any] = {"num_replicas": own["replicas"]} if own["replicas"] else {}
    if not scaling:
        limits = {"min_replicas": own["min_replicas"], "max_replicas": own["max_replicas"]}
        scaling["autoscaling_config"] = {**limits, "target_ongoing_requests": batching.batch}
    deployment = serve.deployment(
        name="exitlens",
        ray_actor_options={"num_cpus": own["cpus"]},
        max_ongoing_requests=busy,
        max_queued_requests=batching.max_waiting,
        graceful_shutdown_timeout_s=parts["limits"].request_seconds + 5,
        **scaling,
    )(serve.ingress(_Late())(Replica))
    return deployment.bind(own["bundle"], parts, own["reload_seconds"])


class Replica:
    """One process with all models."""

    def __init__(self, bundle: str, parts: Mapping[str, Any], reload_seconds: float) -> None:
        directories = name_bundles(bundle.split(","))
        self.repository = Repository(directories, parts["batching"], parts["watching"])
        _OPENED[:] = [make_app(self.repository, parts["limits"], reload_seconds=reload_seconds)]

    def check_health(self) -> None:
        """Raise if a batcher has stopped, so that Ray replaces the replica."""
        if not self.repository.is_alive:
            raise RuntimeError("a batcher has stopped")


def read_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the deployment's own arguments, and the parts of a server by name; raises :class:`InputError`."""
    owners = {each.name: part for part, kind in _PARTS.items() for each in fields(kind) if each.name not in _OF_CONNECTIONS}
    own, parts = dict[str, Any](_OWN), {part: dict[str, Any]() for part in _PARTS}
    for name, value in arguments.items():
        if name in own:
            own[name] = _convert(name, value, type(_OWN[name]))
        elif name in owners:
            part = owners[name]
            parts[part][name] = _convert(name, value, type(getattr(_PARTS[part](), name)))
        else:
            known = [*own, *owners]
            raise InputError(f"arguments: expected some of {', '.join(known)}, got {name!r:.60}.{suggest(name[:20], known)}")
    if not own["bundle"]:
        raise InputError(
            "bundle: expected DIR or NAME=DIR, got none. Fix: serve run exitlens.serving.ray:app bundle=runs/x."
        )
    name_bundles(own["bundle"].split(","))
    for name, least in _LEAST.items():
        if not own[name] >= least:
            raise InputError(f"{name}: expected {least} or more, got {own[name]}")
    if own["min_replicas"] > own["max_replicas"]:
        raise InputError(f"min_replicas: expected max_replicas ({own['max_replicas']}) or less, got {own['min_replicas']}")
    parts["batching"].setdefault("threads", own["cpus"])
    return own, {part: kind(**parts[part]) for part, kind in _PARTS.items()}


def _convert(name: str, value: Any, kind: type) -> Any:
    """Return a value of the type that is wanted, also from text; raises :class:`InputError` rather than round or guess."""
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        converted = kind(value)
        if isinstance(value, bool) or (not isinstance(value, str) and (kind is str or converted != value)):
            raise ValueError
        return converted
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{name}: expected {kind.__name__}, got {value!r:.60}") from error
