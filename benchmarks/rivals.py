"""The plain backbone in LitServe, and applications of Ray Serve: run in the server's process."""

# annotations are not postponed here: LitServe looks at what they are

import signal
from collections.abc import Mapping
from typing import Annotated, Any

import litserve
import numpy as np
import ray
from fastapi import Depends, Request
from ray import serve

from benchmarks.servers import Labels


async def read_body(request: Request) -> bytes:
    """Return the bytes as they came: by itself LitServe takes JSON and forms."""
    return await request.body()


class LabelApi(litserve.LitAPI):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(max_batch_size=settings["max_batch"], batch_timeout=settings["delay"])
        self.settings = settings

    def setup(self, device: str) -> None:
        self.labels = Labels(self.settings)

    def decode_request(self, request: Annotated[bytes, Depends(read_body)]) -> np.ndarray:
        return self.labels.read(request)

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: Any) -> list:
        return self.labels(x) if x.ndim > len(self.labels.shape) else self.labels(x[None])

    def unbatch(self, output: list) -> list:
        return output

    def encode_response(self, output: Any) -> dict:
        return {"label": output if isinstance(output, int) else output[0]}


def serve_by_litserve(settings: Mapping[str, Any]) -> None:
    # fast_queue changes nothing in 0.2.19: the name under which it is passed on is not read, and what it would choose
    # (ZeroMQ) connects senders where receivers belong, so that no answer ever comes
    server = litserve.LitServer(LabelApi(settings), accelerator="cpu", timeout=False, disable_openapi_url=True)
    words = {"log_level": "warning", "access_log": False, "generate_client_file": False}
    server.run(host="127.0.0.1", port=settings["port"], num_api_servers=1, **words)


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
