"""What the Open Inference Protocol says of a server and its models, JSON-ready."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class TensorMetadata(NamedTuple):
    """An input or output of a model, for :func:`describe_model`; a dimension of any size is -1."""

    name: str
    datatype: str
    shape: Sequence[int]


def describe_server(version: str, extensions: Iterable[str]) -> dict[str, Any]:
    """The metadata of the server, for JSON; "binary_tensor_data" is the extension that this file reads and writes."""
    return {"name": "exitlens", "version": version, "extensions": list(extensions)}


def describe_model(
    name: str, versions: Iterable[str], platform: str, inputs: Iterable[TensorMetadata], outputs: Iterable[TensorMetadata]
) -> dict[str, Any]:
    """The metadata of a model, for JSON."""
    tensors = {
        side: [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in found]
        for side, found in (("inputs", inputs), ("outputs", outputs))
    }
    return {"name": name, "versions": list(versions), "platform": platform, **tensors}
