"""Serve applications by Ray Serve, in the server's process."""

import math
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from exitlens_runtime.sessions import import_onnxruntime, make_options


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Replica:
    """Answers with labels of the plain backbone (an ONNX file), in batches."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        runtime, self.shape = import_onnxruntime(), settings["shape"]
        options = make_options(runtime, threads=1)
        self.session = runtime.InferenceSession(settings["onnx"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name
        self.label([bytes(4 * math.prod(self.shape))] * 2)  # the first call takes longer
        self.answer.set_max_batch_size(settings["max_batch"])
        self.answer.set_batch_wait_timeout_s(settings["delay"])

    def label(self, bodies: list[bytes]) -> list[int]:
        samples = np.frombuffer(b"".join(bodies), np.float32).reshape(-1, *self.shape)
        return self.session.run(None, {self.name: samples})[0].argmax(1).tolist()

    @serve.batch
    async def answer(self, bodies: list[bytes]) -> list[int]:
        return self.label(bodies)

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
