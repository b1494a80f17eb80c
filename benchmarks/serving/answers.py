"""Whether the server answers what ``predict`` answers, however requests of many clients come in between one another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import exitlens as xl
from benchmarks.serving.load.requests import Array, make_infer_request
from benchmarks.serving.load.trials import Plan, Spec, Trial, run_load
from benchmarks.serving.networks import Prepared, prepare
from benchmarks.serving.ours import OUTPUTS, read_outputs, start_ours

NEAR = 1e-5  # of a threshold: rounding decides on which side a score is
NOISE = 0.02  # added to samples that come again
PARSE = "benchmarks.serving.answers:read_answer"
PART = 2000  # images that are held in memory at a time
LARGEST = 4  # samples in a request


class Answer(NamedTuple):
    """What the server said of the samples of a request, and which version of the model said it."""

    version: str
    labels: Array
    exits: Array
    scores: Array


class Expected(NamedTuple):
    """What ``predict`` says of samples: labels, exits, scores at those exits, and whether a score is near a threshold."""

    labels: Array
    exits: Array
    scores: Array
    near: Array

    def __getitem__(self, rows: Any) -> Expected:  # type: ignore[override]
        return Expected(*(part[rows] for part in tuple(self)))


def read_answer(head: bytes, body: bytes) -> Answer | None:
    """Of an answer with status 200; for :class:`Spec`."""
    if head[9:12] != b"200":
        return None
    found, length = read_outputs(head, body), find_length(head)
    version = json.loads(body[:length])["model_version"]
    return Answer(version, *(found[name] for name in OUTPUTS))


def find_length(head: bytes) -> int | None:
    """Of the JSON in an answer; ``None``: all is."""
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"inference-header")]
    return int(lines[0].partition(b":")[2]) if lines else None


def predict(bundle: Path, samples: Array, policy: xl.Policy | None = None) -> Expected:
    """What the library says, 64 samples at a time; without a policy, by the bundle's own."""
    net, own = xl.load(bundle)
    policy = policy or own
    assert policy is not None
    parts = [xl.predict(net, batch, policy) for batch in torch.from_numpy(samples).split(64)]
    exits, scores = torch.cat([one.exits for one in parts]), torch.cat([one.confidence for one in parts])
    return Expected(
        torch.cat([one.labels for one in parts]).numpy(),
        exits.numpy(),
        scores.numpy(),
        find_near(net, policy, torch.from_numpy(samples)).numpy(),
    )


def find_near(net: xl.ExitNet, policy: xl.Policy, samples: torch.Tensor) -> torch.Tensor:
    """``(N,)`` whether the score at any exit is so near its threshold that rounding may decide."""
    near = torch.zeros(len(samples), dtype=torch.bool)
    temperatures = policy.temperatures or (1.0,) * net.num_exits
    for at in range(0, len(samples), 64):
        with net.open_engine() as engine:
            outputs = engine.compute_outputs(engine.enter(net.check_input(samples[at : at + 64])))
        for k, threshold in enumerate(policy.thresholds):
            scores = (outputs[k][0] / temperatures[k]).softmax(1).amax(1)
            near[at : at + 64] |= (scores - threshold).abs().cpu() <= NEAR
    return near


def compare_answers(count: int = 10_000, rate: float = 150.0, connections: int = 32) -> dict[str, Any]:
    """So many images in requests of 1 to 4, in random order over many connections, against ``predict``.

    Args:
        rate: requests a second.
    """
    prepared, rng, found = prepare("small"), np.random.default_rng(0), list[dict[str, Any]]()
    with start_ours(prepared.exits, prepared.samples[0], batching={"max_wait_ms": 60_000.0, "max_waiting": 4096}) as server:
        for at in range(0, count, PART):
            samples = make_samples(prepared, min(PART, count - at), rng)
            expected, cuts = predict(prepared.exits, samples), list(cut(len(samples), rng))
            requests = [make_infer_request("net", {"inputs": samples[rows]}, outputs=OUTPUTS) for rows in cuts]
            order = rng.permutation(len(cuts))  # each once
            plan = Plan(np.sort(rng.uniform(0, len(cuts) / rate, len(cuts))), order)
            trial = run_load(Spec(server.port, requests, plan, connections=connections, grace=20.0, parse=PARSE))
            found.append(compare(trial, [expected[cuts[i]] for i in order]))
    sums = {key: sum(one[key] for one in found) for key in found[0] if key != "score_gap"}
    return {"connections": connections, **sums, "score_gap": max(one["score_gap"] for one in found)}


def make_samples(prepared: Prepared, count: int, rng: np.random.Generator) -> Array:
    """The prepared ones again and again, each time with other noise."""
    rows = rng.integers(0, len(prepared.samples), count)
    return (prepared.samples[rows] + NOISE * rng.standard_normal((count, *prepared.samples.shape[1:]))).astype(np.float32)


def cut(count: int, rng: np.random.Generator) -> Iterator[slice]:
    """Rows of requests of 1 to 4 samples."""
    at = 0
    while at < count:
        size = min(int(rng.integers(1, LARGEST + 1)), count - at)
        yield slice(at, at + size)
        at += size


def compare(trial: Trial, expected: Sequence[Expected]) -> dict[str, Any]:
    """Counts of samples: compared, whose label or exit differs, how many of these are near a threshold; requests unanswered.

    Args:
        expected: for each request of the trial, in the order in which they were due.
    """
    found = {"requests": len(expected), "unanswered": 0, "samples": 0, "differing": 0, "differing_near": 0}
    gap = 0.0
    for answer, wanted in zip(trial.answers, expected, strict=True):
        if answer is None or isinstance(answer, bytes):
            found["unanswered"] += 1
            continue
        differs = (answer.labels != wanted.labels) | (answer.exits != wanted.exits)
        found["samples"] += len(differs)
        found["differing"] += int(differs.sum())
        found["differing_near"] += int((differs & wanted.near).sum())
        gap = max(gap, *np.abs(answer.scores - wanted.scores)[~differs].tolist(), 0.0)
    return {**found, "score_gap": gap}
