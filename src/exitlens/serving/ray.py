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
from exitlens.serving.batching import Batching
from exitlens.serving.http.app import make_app
from exitlens.serving.limits import Limits
from exitlens.serving.names import name_bundles
from exitlens.serving.repository import Repository
from exitlens.serving.watching import Watching

_PARTS = {"batching": Batching, "watching": Watching, "limits": Limits}
_OWN = {"bundle": "", "cpus": 1, "replicas": 0, "min_replicas": 1, "max_replicas": 4, "reload_seconds": 2.0}
_OPENED: list[Any] = []  # the app of the replica in this process


class _Late:
    """The app, which is made where the replica is."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await _OPENED[0](scope, receive, send)


def app(arguments: Mapping[str, Any]) -> Any:
    """The application that ``serve run`` and a configuration's ``import_path`` name.

    A replica is ready when its models are; it is asked for at most twice a micro-batch of samples at a time, and queues as
    many more: what is beyond that gets 503 from Ray, or 429 with ``Retry-After`` from the replica.

    Args:
        arguments: ``bundle`` (DIR or NAME=DIR, several parted by commas); ``cpus`` of a replica, which are its threads, too;
            ``replicas``, or ``min_replicas`` and ``max_replicas`` to scale between by the requests that are under way;
            ``reload_seconds``; and whatever :class:`Batching`, :class:`Watching` and :class:`Limits` have.

    Raises:
        InputError: for an unknown argument or a bad value. MissingExtraError: without the extra ``ray``.
    """
    serve = import_extra("ray.serve", "ray", "serving by Ray")
    own, parts = read_arguments(arguments)
    batching: Batching = parts["batching"]
    busy = max(2 * batching.size, 16)
    scaling: dict[str, Any] = {"num_replicas": own["replicas"]} if own["replicas"] else {}
    if not scaling:
        limits = {"min_replicas": own["min_replicas"], "max_replicas": own["max_replicas"]}
        scaling["autoscaling_config"] = {**limits, "target_ongoing_requests": batching.size}
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
        """Asked by Ray, which replaces a replica that raises."""
        if not self.repository.is_alive:
            raise RuntimeError("a batcher has stopped")


def read_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments as text or values -> the deployment's own, and the parts of a server by name; raises :class:`InputError`."""
    owners = {one.name: (part, kind, one) for part, kind in _PARTS.items() for one in fields(kind)}
    own, parts = dict[str, Any](_OWN), {part: dict[str, Any]() for part in _PARTS}
    for name, value in arguments.items():
        if name in own:
            own[name] = _convert(name, value, type(_OWN[name]))
        elif name in owners:
            part, kind, _ = owners[name]
            parts[part][name] = _convert(name, value, type(getattr(kind(), name)))
        else:
            known = [*own, *owners]
            raise InputError(f"arguments: expected some of {', '.join(known)}, got {name!r:.60}.{suggest(name[:20], known)}")
    if not own["bundle"]:
        raise InputError("bundle: expected DIR or NAME=DIR: serve run exitlens.serving.ray:app bundle=runs/x")
    name_bundles(str(own["bundle"]).split(","))
    parts["batching"].setdefault("threads", max(1, int(own["cpus"])))
    return own, {part: kind(**parts[part]) for part, kind in _PARTS.items()}


def _convert(name: str, value: Any, kind: type) -> Any:
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        return kind(value)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{name}: expected {kind.__name__}, got {value!r:.60}") from error
