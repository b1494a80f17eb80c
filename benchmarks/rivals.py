"""Serve applications by Ray Serve, in the server's process."""

import signal
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.servers import Labels


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Replica:
    """Labels of the plain backbone, in batches."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.labels = Labels(settings)
        self.answer.set_max_batch_size(settings["max_batch"])
        self.answer.set_batch_wait_timeout_s(settings["delay"])

    @serve.batch
    async def answer(self, bodies: list[bytes]) -> list[int]:
        return self.labels([self.labels.read(body) for body in bodies])

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"label": await self.answer(await request.body())}


def serve_by_ray(settings: Mapping[str, Any]) -> None:
    """Serve the plain backbone, or with ``arguments`` our application of them, until the process is stopped."""
    if "arguments" in settings:
        from exitlens.serving.ray import app

        application = app(settings["arguments"])
    else:
        application = Replica.options(max_ongoing_requests=8 * settings["max_batch"]).bind(settings)
    # Ray starts a process for each replica if it counts with enough processors; bytes of memory are what processes share
    ray.init(address="local", num_cpus=64, include_dashboard=False, logging_level="error", object_store_memory=200_000_000)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
        serve.run(application)
        signal.pause()
    finally:
        ray.shutdown()
