"""The plain backbone in LitServe: runs in the server's process."""

# annotations are not postponed here: LitServe looks at what they are

from collections.abc import Mapping
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Depends, Request

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


def serve(settings: Mapping[str, Any]) -> None:
    # fast_queue changes nothing in 0.2.19: the name under which it is passed on is not read, and what it would choose
    # (ZeroMQ) connects senders where receivers belong, so that no answer ever comes
    server = litserve.LitServer(LabelApi(settings), accelerator="cpu", timeout=False, disable_openapi_url=True)
    words = {"log_level": "warning", "access_log": False, "generate_client_file": False}
    server.run(host="127.0.0.1", port=settings["port"], num_api_servers=1, **words)
