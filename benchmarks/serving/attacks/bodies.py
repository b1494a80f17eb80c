"""Requests whose tensors or JSON are wrong."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
from collections.abc import Sequence

from benchmarks.serving.attacks.making import CLASSIFY, INFER, LENGTH, kind, make_good, make_infer, make_tensor
from benchmarks.serving.load.requests import make_request

# Tensors that are not what they say, or not what the model takes


@kind("wrong type")
def _mistype(rng: random.Random, shape: Sequence[int]) -> bytes:
    kind, size = rng.choice([("INT64", 8), ("FP64", 8), ("UINT8", 1), ("FP16", 2), ("BOOL", 1), ("FLOAT", 4), ("", 4)])
    return make_tensor((1, *shape), bytes(size * math.prod(shape)), kind)


@kind("wrong shape")
def _misshape(rng: random.Random, shape: Sequence[int]) -> bytes:
    wrong = rng.choice(
        [tuple(shape), (1, *shape, 1), (1, *shape[:-1], shape[-1] + 1), (1, *reversed(shape)), (), (0, *shape)]
    )
    return make_tensor(wrong, bytes(4 * math.prod(wrong))) if wrong != (1, *shape) else make_tensor((1, 2), bytes(8))


@kind("huge shape")
def _enlarge(rng: random.Random, shape: Sequence[int]) -> bytes:
    huge = rng.choice([(1 << 40, *shape), (1 << 62, 1 << 62), (1,) * 5000, (10**400,), (-1, *shape), (1e9, *shape)])
    return make_tensor(huge, bytes(64))  # type: ignore[arg-type]


@kind("too many samples")
def _crowd(rng: random.Random, shape: Sequence[int]) -> bytes:
    count = rng.randrange(257, 300)
    return make_tensor((count, *shape), bytes(4 * count * math.prod(shape)))


@kind("NaN")
def _unnumber(rng: random.Random, shape: Sequence[int]) -> bytes:
    return _place(rng, shape, float("nan"))


@kind("Inf")
def _overflow(rng: random.Random, shape: Sequence[int]) -> bytes:
    return _place(rng, shape, rng.choice([float("inf"), float("-inf")]))


def _place(rng: random.Random, shape: Sequence[int], value: float) -> bytes:
    data = bytearray(4 * math.prod(shape))
    struct.pack_into("<f", data, 4 * rng.randrange(math.prod(shape)), value)
    return make_tensor((1, *shape), bytes(data))


@kind("numbers that JSON has not")
def _write_numbers(rng: random.Random, shape: Sequence[int]) -> bytes:
    word = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 9000, "0x10", "1_000", "true", "null", '"1"', "[]"])
    data = ",".join([word] * 1 + ["0"] * (math.prod(shape) - 1))
    one = f'{{"name":"inputs","shape":{[1, *shape]},"datatype":"FP32","data":[{data}]}}'
    return make_infer(f'{{"inputs":[{one}]}}'.encode())


@kind("lying BYTES")
def _lie(rng: random.Random, _: Sequence[int]) -> bytes:
    size = rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
    one = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [one]}).encode()
    return make_infer(head + struct.pack("<I", size) + b"abcd", {LENGTH: str(len(head))})


@kind("bad header length")
def _mislead(rng: random.Random, shape: Sequence[int]) -> bytes:
    length = rng.choice(["-1", "0", "999999999", "1e3", "abc", "9" * 40, "12 13", "\u00b2"])
    return make_infer(b'{"inputs": []}' + bytes(40), {LENGTH: length})


# JSON that is none, or says what nobody asked for


@kind("unknown field")
def _add_field(rng: random.Random, shape: Sequence[int]) -> bytes:
    return make_good(shape, **{rng.choice(["input", "__proto__", "model", "x" * 10_000, "\ud800"]): 1})


@kind("unknown parameter")
def _add_parameter(rng: random.Random, shape: Sequence[int]) -> bytes:
    name = rng.choice(["timeout", "polcy", "shared_memory_region", "sequence_id", "", "\n" * 5000])
    return make_good(shape, parameters={name: rng.choice([1, True, "x", 2.5])})


@kind("bad terms")
def _demand(rng: random.Random, shape: Sequence[int]) -> bytes:
    terms = [("max_cost", -1), ("max_cost", "NaN"), ("min_confidence", 7), ("deadline_ms", -5), ("deadline_ms", 1e300)]
    name, value = rng.choice([*terms, ("policy", "../policy"), ("policy", 3), ("policy", [1]), ("max_cost", {"a": 1})])
    return make_good(shape, parameters={name: value})


@kind("unknown output")
def _want(rng: random.Random, shape: Sequence[int]) -> bytes:
    return make_good(shape, outputs=[{"name": rng.choice(["logits", "", "label\0", "x" * 9999])}])


@kind("deep JSON")
def _nest(rng: random.Random, _: Sequence[int]) -> bytes:
    depth = rng.choice([2_000, 100_000, 1_000_000])
    opening = rng.choice([b"[", b'{"a":'])
    return make_infer(b'{"inputs":' + opening * depth)


@kind("no JSON")
def _scribble(rng: random.Random, _: Sequence[int]) -> bytes:
    bodies = [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"a"',
        b'{"inputs": 3}',
        b'{"inputs": [3]}',
        b"{'inputs': []}",
        b'{"inputs": []',
        b"\0",
    ]
    return make_infer(rng.choice(bodies))


@kind("invalid UTF-8")
def _mangle(rng: random.Random, _: Sequence[int]) -> bytes:
    bad = rng.choice([b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
    return rng.choice(
        [make_infer(b'{"id": "%s", "inputs": []}' % bad), make_request(CLASSIFY, bad, {"Content-Type": "text/plain"})]
    )


@kind("pickle")
def _pickle(rng: random.Random, shape: Sequence[int]) -> bytes:
    body = pickle.dumps({"inputs": [0.0] * math.prod(shape)}) + b"cos\nsystem\n(S'true'\ntR."
    return make_request(rng.choice([INFER, CLASSIFY]), body, {"Content-Type": "application/octet-stream"})
