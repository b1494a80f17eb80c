"""KServe: a custom predictor, ``python -m exitlens_runtime.servers.kserve --edge edge --model_name NAME``.

KServe's model server does not batch. Here requests that come while the network is busy are answered together.
Source: https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/custom-predictor
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import kserve
from kserve.errors import InvalidInput
from kserve.model_server import parser
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse

from exitlens_runtime.bundle import load
from exitlens_runtime.network import EdgeNetwork
from exitlens_runtime.servers import DATATYPES, answer_requests, describe_inputs

MOST = 64  # requests in a batch


class Cascade(kserve.Model):  # type: ignore[misc]  # KServe is not always there
    """Answers requests with an edge bundle."""

    def __init__(self, name: str, net: EdgeNetwork) -> None:
        super().__init__(name)
        self.net, self.ready = net, True
        self._waiting: list[tuple[InferRequest, asyncio.Future[Any]]] = []
        self._work: asyncio.Task[None] | None = None

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the inputs, for the model's metadata."""
        return describe_inputs(self.net.manifest)

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """Answer a request of the Open Inference Protocol."""
        if not isinstance(payload, InferRequest):
            raise InvalidInput(
                "request: expected the Open Inference Protocol (v2), got v1. Fix: POST /v2/models/NAME/infer."
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_waiting())
        outputs = await future
        if isinstance(outputs, Exception):
            raise InvalidInput(str(outputs)) from outputs
        response = []
        for name, values in outputs.items():
            output = InferOutput(name, list(values.shape), DATATYPES[values.dtype.name])
            output.set_data_from_numpy(values, binary_data=payload.use_binary_outputs)
            response.append(output)
        return InferResponse(payload.id or str(uuid4()), self.name, response, requested_outputs=payload.request_outputs)

    async def _answer_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            given = [{tensor.name: tensor.as_numpy() for tensor in payload.inputs} for payload, _ in batch]
            wanted = [[output.name for output in payload.request_outputs or ()] for payload, _ in batch]
            answers = await asyncio.to_thread(answer_requests, self.net, given, wanted)
            for (_, future), outputs in zip(batch, answers, strict=True):
                if not future.done():  # its client has left
                    future.set_result(outputs)


def main() -> None:
    """Serve one bundle until the process is stopped."""
    parser.add_argument("--edge", required=True, help="directory that exitlens export wrote")
    parser.add_argument("--policy", default="default", help="name of a policy in the bundle")
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: one for each processor)")
    given, _ = parser.parse_known_args()
    net = load(given.edge, policy=given.policy, threads=given.threads)
    kserve.ModelServer().start([Cascade(given.model_name, net)])


if __name__ == "__main__":
    main()
