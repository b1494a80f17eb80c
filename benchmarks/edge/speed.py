"""Times of everything that answers with one network, in turn in one process."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import exitlens as xl
import exitlens_runtime
from benchmarks.edge.networks import SHARES, UNREACHABLE, force_shares
from exitlens.delivery.bench.benchmark import write_plain
from exitlens.delivery.bench.timing import pin_threads, time_calls
from exitlens.model.engine.onnx_files import open_file
from exitlens.model.timing import Times, Work, describe_machine, interleave, interval
from exitlens_runtime.routing import find_probabilities
from exitlens_runtime.sessions import open_openvino

Answer = Callable[[Any], object]
TORCH, PLAIN, RUNTIME, CASCADE = "exits, PyTorch", "plain, ONNX Runtime", "runtime", "cascade"
NOBODY, ALL, OPENVINO, EARLYON = "nobody leaves", "all at exit 0", "OpenVINO", "earlyon"
COUNTS = {1: 20, 8: 40, 32: 64}  # samples of a round, by those in a call


class Cascade:
    """``cascade.onnx`` in ONNX Runtime or OpenVINO, under one policy."""

    def __init__(self, edge: Path, policy: xl.Policy, threads: int, backend: str = "onnxruntime") -> None:
        path = edge / "cascade.onnx"
        self.limits = {
            "thresholds": np.array(policy.thresholds, np.float32),
            "temperatures": np.array(policy.temperatures, np.float32),
        }
        self.name = json.loads((edge / "manifest.json").read_text())["inputs"][0]["name"]
        if backend == "onnxruntime":
            session = open_file(path, threads)
            names = [one.name for one in session.get_outputs()]
            self._run = lambda feed: dict(zip(names, session.run(None, feed), strict=True))
        else:
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            model = open_openvino().compile_model(str(path), "CPU", settings)
            names = [next(iter(one.names)) for one in model.outputs]
            self._run = lambda feed: dict(zip(names, (one.copy() for one in model(feed).values()), strict=True))

    def __call__(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        found: dict[str, np.ndarray[Any, Any]] = self._run({self.name: images} | self.limits)
        return found


def make_plain(plain: nn.Module, images: Tensor, threads: int) -> Answer:
    """The plain backbone in ONNX Runtime with the runtime's settings, and its label and probability."""
    written = write_plain(plain, images)
    session = open_file(written.path, threads)
    name, output = written.inputs[0], list(written.outputs)

    def answer(batch: np.ndarray[Any, Any]) -> Any:
        p = find_probabilities(session.run(output, {name: batch})[0], 1.0)
        return p.argmax(1), p.max(1)

    return answer


class StageTimes:
    """Seconds of every file of an edge bundle on all samples, from which the ideal time of a policy follows."""

    def __init__(self, edge: exitlens_runtime.EdgeNetwork, batches: Sequence[Any]) -> None:
        self.edge, self.batches, self.rounds = edge, batches, list[list[float]]()

    def __call__(self) -> list[float]:
        spent = [0.0] * self.edge.num_exits
        for batch in self.batches:
            tensors = self.edge.check(batch)
            for k, session in self.edge._sessions.items():
                started = time.perf_counter()
                _, _, *crossing = session.run(tensors)
                spent[k] += time.perf_counter() - started
                tensors = dict(zip(session.outputs[2:], crossing, strict=True))
        self.rounds.append(spent)
        return [sum(spent)]

    def find_ideal(self, shares: Sequence[float]) -> list[float]:
        """Seconds of each round, were every file to take its share of the samples and nothing else any time."""
        reached = 1 - np.cumsum([0.0, *shares[:-1]])
        return [float(np.dot(reached, spent)) for spent in self.rounds]


def measure_speed(
    built: tuple[nn.Module, xl.ExitNet, Tensor],
    size: int,
    threads: int,
    *,
    shares: tuple[float, ...] = SHARES,
    count: int = 0,
    seconds: float = 20.0,
    others: Mapping[str, Callable[[Tensor, xl.Policy], Work]] | None = None,
) -> dict[str, Any]:
    """Everything at one batch size, the same images leaving at the same exits everywhere."""
    plain, net, images = built
    count = count or COUNTS[size]
    images = images[torch.arange(count) % len(images)]
    with pin_threads(threads), tempfile.TemporaryDirectory() as folder:
        net.tuning = xl.Tuning()
        net.tune(images, precision="float32", backend="torch", seconds=2.0)
        policy = force_shares(net, images, shares)
        works, steps = _make_works(plain, net, images, policy, size, threads, Path(folder))
        works |= {name: make(images, policy) for name, make in (others or {}).items()}
        times = interleave(works, rounds=5, seconds=seconds, most=200)
        found = {"machine": describe_machine(threads), "batch": size, "samples": count, "rounds": len(times.rounds[TORCH])}
        found["exits"] = dict(zip(map(str, range(net.num_exits)), shares, strict=True))
        found["cost"] = net.cost.tolist()
    return found | summarise(times, steps, shares, count)


def _make_works(
    plain: nn.Module, net: xl.ExitNet, images: Tensor, policy: xl.Policy, size: int, threads: int, folder: Path
) -> tuple[dict[str, Work], StageTimes]:
    edge = xl.export(net, policy, folder / "edge")
    arrays = [one.numpy() for one in images.split(size)]
    onnx_net = copy.deepcopy(net)
    onnx_net.tuning = xl.Tuning(backend="onnx")
    early = len(policy.thresholds)
    nobody, everybody = (replace(policy, thresholds=(limit,) * early) for limit in (UNREACHABLE, -1.0))
    runtime = exitlens_runtime.load(edge, threads=threads)
    openvino = exitlens_runtime.load(edge, threads=threads, backend="openvino")
    steps = StageTimes(runtime, arrays)
    works: dict[str, Work] = {"steps": steps}
    for name, run in {TORCH: net, "exits, library on ONNX Runtime": onnx_net}.items():
        works[name] = time_calls(lambda x, run=run: xl.predict(run, x, policy), images.split(size), run.tuning.keep_memory)
    works[PLAIN] = time_calls(make_plain(plain, images, threads), arrays)
    for name, one in {"": policy, f", {NOBODY}": nobody, f", {ALL}": everybody}.items():
        works[f"{RUNTIME}{name}"] = time_calls(runtime.with_policy(one.to_dict()).predict, arrays)
        works[f"{CASCADE}{name}"] = time_calls(Cascade(edge, one, threads), arrays)
    works[f"{RUNTIME}, {OPENVINO}"] = time_calls(openvino.with_policy(policy.to_dict()).predict, arrays)
    works[f"{CASCADE}, {OPENVINO}"] = time_calls(Cascade(edge, policy, threads, "openvino"), arrays)
    return works, steps


def summarise(times: Times, steps: StageTimes, shares: Sequence[float], count: int) -> dict[str, Any]:
    """Milliseconds a sample and the ratios that are promised, each a median with its interval."""
    found: dict[str, Any] = {"ms": {name: times.summary(name, count)["ms"] for name in times.rounds}}
    pairs = {
        "torch_over_runtime": (TORCH, RUNTIME),
        "plain_over_runtime": (PLAIN, RUNTIME),
        "runtime_over_cascade": (RUNTIME, CASCADE),
        "runtime_over_openvino": (RUNTIME, f"{RUNTIME}, {OPENVINO}"),
        "torch_over_library": (TORCH, "exits, library on ONNX Runtime"),
        "earlyon_over_runtime": (EARLYON, RUNTIME),
    }
    found |= {key: times.ratio(*pair).to_list() for key, pair in pairs.items() if set(pair) <= set(times.rounds)}
    last = len(times.rounds["steps"])
    ideal = steps.find_ideal(shares)[-last:]
    found["ideal_ms"] = interval([1000 * one / count for one in ideal]).to_list()
    found["efficiency"] = interval([a / b for a, b in zip(ideal, times.seconds(RUNTIME), strict=True)]).to_list()
    first = [spent[0] for spent in steps.rounds[-last:]]
    full, early = (times.seconds(f"{CASCADE}, {name}") for name in (NOBODY, ALL))
    found["saving"] = interval([(a - b) / (a - c) for a, b, c in zip(full, early, first, strict=True)]).to_list()
    return found
