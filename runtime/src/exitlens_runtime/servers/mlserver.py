"""MLServer: a runtime for ``model-settings.json``; MLServer's adaptive batching gathers requests.

MLServer joins requests before a model sees them, so one with values that the network cannot take fails together with those
it was joined with. Source: https://docs.seldon.ai/mlserver/user-guide/custom
"""

from __future__ import annotations

import asyncio
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor
from mlserver.utils import get_model_uri

from exitlens_runtime.bundle import load
from exitlens_runtime.errors import InputError
from exitlens_runtime.servers import DEFAULT_OUTPUTS, answer, describe_inputs, describe_outputs


class Cascade(MLModel):  # type: ignore[misc]  # MLServer is not always there
    """Answers requests with the bundle at ``parameters.uri``."""

    async def load(self) -> bool:
        """Open the bundle, with the policy and the number of threads in ``parameters.extra``."""
        self.net = load(await get_model_uri(self.settings), **self.settings.parameters.extra)
        self.inputs, self.outputs = _read(describe_inputs(self.net.manifest)), _read(describe_outputs(self.net.manifest))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request, or several that were joined."""
        wanted = [output.name for output in payload.outputs or ()] or DEFAULT_OUTPUTS
        try:
            tensors = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
            outputs = await asyncio.to_thread(answer, self.net, tensors, wanted)
        except (InputError, ValueError) as error:  # ValueError: data that do not fit their shape
            raise InferenceError(str(error)) from error
        rows = [NumpyCodec.encode_output(name, values) for name, values in outputs.items()]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=rows)


def _read(tensors: list[dict[str, Any]]) -> list[MetadataTensor]:
    """Return tensors as MLServer describes them, which sends (B,) as (B,1)."""
    return [MetadataTensor(**x | {"shape": x["shape"] if len(x["shape"]) > 1 else [-1, 1]}) for x in tensors]
