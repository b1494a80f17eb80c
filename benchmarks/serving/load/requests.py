"""Requests as bytes, written once before the load starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}  # NumPy's names and those of the Open Inference Protocol


def make_request(path: str, body: bytes, headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    """Head and body of a request over a connection that stays open."""
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def make_raw_request(path: str, sample: Array, headers: Mapping[str, str] | None = None) -> bytes:
    """What the rivals take: the sample's numbers and nothing else."""
    return make_request(path, sample.tobytes(), {"Content-Type": "application/octet-stream", **(headers or {})})


def make_infer_request(
    model: str,
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[str] = (),
    binary: bool = True,
    parameters: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """``POST /v2/models/{model}/infer`` of the Open Inference Protocol.

    Args:
        inputs: by name, batch axis first.
        outputs: names of the wanted ones; empty: all.
        binary: numbers follow the JSON as bytes (binary tensor extension); else they stand in it.
        parameters: of the request.
        headers: further ones, such as a priority or a deadline.
    """
    tensors, tail = list[dict[str, Any]](), b""
    for name, value in inputs.items():
        one: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": KINDS[value.dtype.name]}
        if binary:
            tail += (data := value.tobytes())
            one["parameters"] = {"binary_data_size": len(data)}
        else:
            one["data"] = value.ravel().tolist()
        tensors.append(one)
    content: dict[str, Any] = {"inputs": tensors}
    content |= {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    content |= {"parameters": dict(parameters)} if parameters else {}
    head = json.dumps(content, separators=(",", ":")).encode()
    fields = {"Content-Type": "application/json"}
    if binary:
        fields = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return make_request(f"/v2/models/{model}/infer", head + tail, {**fields, **(headers or {})})
