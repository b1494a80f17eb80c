"""Applications of Ray Serve: run in the server's process, which starts a Ray of its own."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.rivals import Labels

STORE = 200_000_000  # bytes of memory that processes share


def serve_backbone(settings: Mapping[str, Any]) -> None:
    """The plain backbone, a replica."""
    run(Replica.options(max_ongoing_requests=8 * settings["max_batch"]).bind(settings), settings)


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Replica:
    """Labels, in batches."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.labels = Labels(settings)
        self.answer.set_max_batch_size(settings["max_batch"])
        self.answer.set_batch_wait_timeout_s(settings["delay"])

    @serve.batch
    async def answer(self, bodies: list[bytes]) -> list[int]:
        return self.labels([self.labels.read(one) for one in bodies])

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"label": await self.answer(await request.body())}


def run(application: Any, settings: Mapping[str, Any], processors: int = 4) -> None:
    """Until the process is stopped.

    Args:
        processors: that Ray counts with; it is bound to those that the process has, whatever it counts.
    """
    ray.init(address="local", num_cpus=processors, include_dashboard=False, logging_level="error", object_store_memory=STORE)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
        serve.run(application)
        signal.pause()
    finally:
        ray.shutdown()
