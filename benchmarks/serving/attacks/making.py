"""How hostile requests are made: each kind has a maker, which is given random numbers and the shape of a sample."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.load.requests import make_request

INFER, CLASSIFY = "/v2/models/net/infer", "/classify"
JSON = {"Content-Type": "application/json"}
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Hostile:
    """A request that must not be answered with 200.

    Attributes:
        kind: in a word or two.
        parts: bytes, sent one after the other with ``pause`` seconds in between.
        closes: nothing more is sent after them (the sending side of the connection is closed).
    """

    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    closes: bool = False


Maker = Callable[[random.Random, Sequence[int]], Hostile | bytes]
MAKERS: dict[str, Maker] = {}


def kind(name: str) -> Callable[[Maker], Maker]:
    """A function that makes requests of a kind."""

    def add(maker: Maker) -> Maker:
        MAKERS[name] = maker
        return maker

    return add


def make_infer(body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Any body, as a request for inference."""
    return make_request(INFER, body, headers or JSON)


def make_tensor(shape: Sequence[Any], data: bytes, datatype: str = "FP32", **more: Any) -> bytes:
    """A request with binary data, in which anything may be wrong."""
    one = {"name": "inputs", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [one], **more}).encode()
    return make_infer(head + data, {LENGTH: str(len(head))})


def make_good(shape: Sequence[int], **more: Any) -> bytes:
    """A request to which nothing is wrong but what is added."""
    return make_tensor((1, *shape), bytes(4 * math.prod(shape)), **more)
