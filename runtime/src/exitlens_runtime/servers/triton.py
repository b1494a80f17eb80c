"""Triton Inference Server: the model of the Python backend, which gathers requests by dynamic batching.

Source: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # part of the server

from exitlens_runtime.bundle import load, read_manifest
from exitlens_runtime.servers import answer_requests, describe_inputs, describe_outputs


class Cascade:
    """Answers requests with the bundle at ``edge``; ``TritonPythonModel`` in a package derives from it."""

    edge: Path

    @classmethod
    def auto_complete_config(cls, config: Any) -> Any:
        """Tell the server the tensors of requests and answers."""
        manifest = read_manifest(cls.edge)
        pairs = (config.add_input, describe_inputs(manifest)), (config.add_output, describe_outputs(manifest))
        for add, tensors in pairs:
            for x in tensors:  # the server has no tensors without axes: (B,) is (B,1)
                add({"name": x["name"], "data_type": f"TYPE_{x['datatype']}", "dims": x["shape"][1:] or [1]})
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, with the policy and the number of threads among the parameters of ``config.pbtxt``."""
        parameters = json.loads(args["model_config"])["parameters"]
        policy, threads = (parameters[name]["string_value"] for name in ("policy", "threads"))
        self.net = load(self.edge, policy=policy, threads=int(threads))
        self.names = [tensor["name"] for tensor in describe_inputs(self.net.manifest)]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch together; one with bad inputs fails alone."""
        get, responses = triton.get_input_tensor_by_name, []
        given = [{name: get(request, name).as_numpy() for name in self.names} for request in requests]
        wanted = [request.requested_output_names() for request in requests]
        for outputs in answer_requests(self.net, given, wanted):
            if isinstance(outputs, Exception):
                error = triton.TritonError(str(outputs), triton.TritonError.INVALID_ARG)
                responses.append(triton.InferenceResponse(error=error))
            else:
                rows = {name: values[:, None] if values.ndim == 1 else values for name, values in outputs.items()}
                responses.append(triton.InferenceResponse([triton.Tensor(name, values) for name, values in rows.items()]))
        return responses
