"""Applications of Ray Serve: run in the server's process, which starts a Ray of its own."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.rivals.plain import Labels
from benchmarks.serving.rivals.pools import HEADER, Answer, Sample, Stages

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


def serve_pools(settings: Mapping[str, Any]) -> None:
    """A deployment for each group of stages; each hands on to the next."""
    waiting, following = 8 * settings["max_batch"], None
    groups = list(zip(settings["groups"], settings["replicas"], strict=True))
    for place, (exits, count) in reversed(list(enumerate(groups))):
        own = Pool.options(name=f"pool_{place}", num_replicas=count, max_ongoing_requests=waiting)
        following = own.bind(settings, exits, following)
        waiting *= 2  # those before keep their requests until the later ones have answered
    run(following, settings)


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Pool:
    """Some stages, in batches; what does not leave here goes to the next pool, sample by sample."""

    def __init__(self, settings: Mapping[str, Any], exits: list[int], following: Any) -> None:
        self.stages, self.following = Stages(Path(settings["bundle"]), exits, settings["threads"]), following
        self.answer.set_max_batch_size(settings["max_batch"])
        self.answer.set_batch_wait_timeout_s(settings["delay"])

    @serve.batch
    async def answer(self, samples: list[Sample]) -> list[Answer | Sample]:
        return self.stages(samples)

    async def carry_on(self, sample: Sample) -> Answer:
        """The answer of here or of a later pool."""
        found = await self.answer(sample)
        return await self.following.carry_on.remote(found) if isinstance(found, Sample) else found

    async def __call__(self, request: Request) -> dict[str, int]:
        sample = self.stages.read(await request.body(), int(request.headers.get(HEADER, "0")))
        return (await self.carry_on(sample))._asdict()


def run(application: Any, settings: Mapping[str, Any], processors: int = 64) -> None:
    """Until the process is stopped.

    Args:
        processors: that Ray counts with: it starts a process for each replica, on those that this process may use.
    """
    ray.init(address="local", num_cpus=processors, include_dashboard=False, logging_level="error", object_store_memory=STORE)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
        serve.run(application)
        signal.pause()
    finally:
        ray.shutdown()
