"""Whether all that runs exported files decides as the library does, on 10,000 test images of the demo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exitlens as xl
import exitlens_runtime
from benchmarks.edge.networks import BUNDLE
from benchmarks.edge.speed import Cascade
from benchmarks.performance.networks import make_scenes
from exitlens.functional.scores import score

COUNT, SIZES, NEAR = 10_000, (1, 3, 64), 1e-5
Array = np.ndarray[Any, Any]
Answer = Callable[[Array], tuple[Array, Array, list[Array]]]  # labels, exits and the map of the exit that answered


def compare_decisions(count: int = COUNT) -> dict[str, Any]:
    """By what answers and batch size: samples with another label or exit, those near a threshold, the furthest map."""
    net, policy = xl.load(BUNDLE)
    assert policy is not None
    images = make_scenes(net, count, seed=11)
    expected = [xl.predict(net, batch, policy, attention=True) for batch in images.split(250)]
    labels, exits = (torch.cat([getattr(p, n) for p in expected]).numpy() for n in ("labels", "exits"))
    maps = [one.numpy() for p in expected for one in p.attention or ()]
    near = find_near(net, policy, images)
    found: dict[str, Any] = {"samples": count, "near": int(near.sum())}
    with tempfile.TemporaryDirectory() as folder:
        edge = xl.export(net, policy, Path(folder) / "edge")
        for name, answer in make_answers(edge, policy).items():
            for size in SIZES:
                others, others_near, gap = 0, 0, 0.0
                for at in range(0, count, size):
                    rows = slice(at, at + size)
                    their_labels, their_exits, their_maps = answer(images[rows].numpy())
                    same = (their_labels == labels[rows]) & (their_exits == exits[rows])
                    others += int((~same & ~near[rows]).sum())
                    others_near += int((~same & near[rows]).sum())
                    pairs = zip(maps[rows], their_maps, same, strict=True)
                    gap = max([gap, *(float(np.abs(a - b).max()) for a, b, ok in pairs if ok)])
                found.setdefault(name, {})[str(size)] = {"others": others, "others_near": others_near, "map_gap": gap}
                print(f"  {name}, batch {size}: {others} others", flush=True)
    return found


def find_near(net: xl.ExitNet, policy: xl.Policy, images: torch.Tensor) -> Array:
    """Samples with a score so near its threshold that rounding may decide otherwise."""
    near = list[torch.Tensor]()
    with net.open_engine() as engine:
        for batch in images.split(250):
            outputs = engine.compute_outputs(engine.enter(net.check_input(batch)))
            limits = zip(outputs[:-1], policy.thresholds, policy.temperatures[:-1], strict=True)
            gaps = [(score(logits, policy.score, t) - threshold).abs() for (logits, _), threshold, t in limits]
            near.append(torch.stack(gaps).amin(0) < NEAR)
    return torch.cat(near).numpy()


def make_answers(edge: Path, policy: xl.Policy) -> dict[str, Answer]:
    """The runtime and the cascade, each in both backends."""
    answers: dict[str, Answer] = {}
    for backend, suffix in (("onnxruntime", ""), ("openvino", ", OpenVINO")):
        runtime = exitlens_runtime.load(edge, backend=backend)
        answers[f"runtime{suffix}"] = _ask(runtime)
        answers[f"cascade{suffix}"] = _ask_cascade(Cascade(edge, policy, 0, backend))
    return answers


def _ask(runtime: exitlens_runtime.EdgeNetwork) -> Answer:
    def answer(images: Array) -> tuple[Array, Array, list[Array]]:
        found = runtime.predict(images, attention=True)
        return found.labels, found.exits, list(found.attention or ())

    return answer


def _ask_cascade(cascade: Cascade) -> Answer:
    def answer(images: Array) -> tuple[Array, Array, list[Array]]:
        found = cascade(images)
        return found["labels"], found["exits"], [found[f"attention_{k}"][i] for i, k in enumerate(found["exits"])]

    return answer
