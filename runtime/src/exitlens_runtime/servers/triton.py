"""Triton Inference Server: the model of the Python backend, which gathers requests by dynamic batching.

Source: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # part of the server

from exitlens_runtime.bundle import load
from exitlens_runtime.servers import answer_requests, list_inputs


class TritonPythonModel:
    """Answers requests with the bundle ``edge`` in the model's version directory."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, with the policy and the number of threads among the parameters of ``config.pbtxt``."""
        parameters = json.loads(args["model_config"])["parameters"]
        policy, threads = (parameters[name]["string_value"] for name in ("policy", "threads"))
        folder = Path(args["model_repository"]) / args["model_version"] / "edge"
        self.net = load(folder, policy=policy, threads=int(threads))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch together; one with bad inputs fails alone."""
        given, wanted = [], []
        for request in requests:
            tensors = {name: triton.get_input_tensor_by_name(request, name) for name in list_inputs(self.net)}
            given.append({name: tensor.as_numpy() for name, tensor in tensors.items()})
            wanted.append(request.requested_output_names())
        responses = []
        for outputs in answer_requests(self.net, given, wanted):
            if isinstance(outputs, Exception):
                error = triton.TritonError(str(outputs), triton.TritonError.INVALID_ARG)
                responses.append(triton.InferenceResponse(error=error))
            else:  # the server's configuration has no outputs without axes: (B,) becomes (B,1)
                rows = {name: values[:, None] if values.ndim == 1 else values for name, values in outputs.items()}
                responses.append(triton.InferenceResponse([triton.Tensor(name, values) for name, values in rows.items()]))
        return responses
