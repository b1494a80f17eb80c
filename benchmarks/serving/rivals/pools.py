"""The other design of scaling, on Ray Serve: a pool of replicas for each group of stages, batched anew between the groups.

One group of all stages is the whole network in each replica; both designs run the same code. Where a sample leaves is forced
by the request: header ``x-exit``, from :func:`plan_exits`. Requests are float32 bytes of one sample, the answer
``{"label": 3, "exit": 1}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.serving.load.requests import Array, make_raw_request
from benchmarks.serving.rivals.plain import start_application
from benchmarks.serving.rivals.servers import Server
from exitlens_runtime.bundle import read_manifest
from exitlens_runtime.sessions import open_session

HEADER = "x-exit"


@dataclass(frozen=True)
class Layout:
    """Which replicas run what.

    Attributes:
        groups: exits whose stages run together, in order: ``((0,), (1, 2, 3))``.
        replicas: of each group.
        threads: of each replica.
    """

    groups: Sequence[Sequence[int]]
    replicas: Sequence[int]
    threads: int = 1


WHOLE = Layout(((0, 1, 2, 3),), (2,))
POOLS = Layout(((0,), (1, 2, 3)), (1, 1))


class Sample(NamedTuple):
    """One on its way: what it crosses the cut with, by name and without the batch axis, and where it is to leave."""

    tensors: dict[str, Array]
    exit: int


class Answer(NamedTuple):
    """What is said of a sample, and where it left."""

    label: int
    exit: int


class Stages:
    """Some stages of an edge bundle, one after the other on the samples that stay."""

    def __init__(self, bundle: Path, exits: Sequence[int], threads: int) -> None:
        manifest = read_manifest(bundle)
        self.inputs = [(one["name"], tuple(one["shape"])) for one in manifest["inputs"]]
        self.sessions = {
            int(one["exit"]): open_session("onnxruntime", bundle / one["file"], threads, one["inputs"], one["outputs"])
            for one in manifest["segments"]
            if int(one["exit"]) in exits
        }
        if list(self.sessions) != list(exits):
            raise ValueError(f"exits: expected some of the bundle's, in order, got {list(exits)}")

    def read(self, body: bytes, exit_: int) -> Sample:
        """A request's sample, for the first stage."""
        name, shape = self.inputs[0]
        return Sample({name: np.frombuffer(body, np.float32).reshape(shape)}, exit_)

    def __call__(self, samples: Sequence[Sample]) -> list[Answer | Sample]:
        """The answer of each sample that leaves here; the others as the next group takes them."""
        found, where = list[Answer | Sample](samples), np.arange(len(samples))
        plan = np.array([one.exit for one in samples])
        tensors = {name: np.stack([one.tensors[name] for one in samples]) for name in samples[0].tensors}
        for exit_, session in self.sessions.items():
            logits, _, *crossing = session.run(tensors)
            leaves = (plan <= exit_) | (not crossing)
            leaving, staying = np.flatnonzero(leaves), np.flatnonzero(~leaves)
            for i, label in zip(where[leaving].tolist(), logits[leaving].argmax(1).tolist(), strict=True):
                found[i] = Answer(label, exit_)
            if not len(staying):
                return found
            where, plan = where[staying], plan[staying]
            taken = crossing if not len(leaving) else [one.take(staying, 0) for one in crossing]
            tensors = dict(zip(session.outputs[2:], taken, strict=True))
        for row, i in enumerate(where.tolist()):
            found[i] = Sample({name: one[row] for name, one in tensors.items()}, samples[i].exit)
        return found


def plan_exits(count: int, shares: Sequence[float], seed: int = 0) -> list[int]:
    """An exit for each of so many samples, in these shares and random order."""
    counts = np.diff(np.round(np.cumsum([0.0, *shares]) / np.sum(shares) * count).astype(int))
    exits: list[int] = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(shares)), counts)).tolist()
    return exits


def make_pool_requests(path: str, samples: Array, exits: Sequence[int]) -> list[bytes]:
    """A request for each sample, which says where it is to leave."""
    return [make_raw_request(path, one, {HEADER: str(k)}) for one, k in zip(samples, exits, strict=True)]


def start_pools(
    bundle: Path,
    layout: Layout,
    *,
    max_batch: int = 16,
    delay: float = 0.002,
    proxy: str = "haproxy",
    processors: Sequence[int] = (),
) -> AbstractContextManager[Server]:
    """A Ray Serve with these replicas; ``delay``: seconds for which each waits until a batch is full."""
    shape = read_manifest(bundle)["inputs"][0]["shape"]
    settings: Mapping[str, Any] = {"bundle": str(bundle), **asdict(layout), "max_batch": max_batch, "delay": delay}
    probe = bytes(4 * int(np.prod(shape)))
    return start_application("benchmarks.serving.rivals.with_ray:serve_pools", settings, probe, proxy, processors)
