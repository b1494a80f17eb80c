"""Measure how exact the compact form of traces is, and what time and memory traces of many samples and classes take.

Cells: agreement (compact logits against full ones), million (calibrate and evaluate on a million samples; needs 1 GB of disk),
collecting (memory of collect). Every step that is measured runs in a process of its own, on one core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, run_alone
from benchmarks.results import Runs, Tree
from exitlens.functional.compact import compress
from exitlens.functional.scores import fit_temperature, rate_probabilities, score, score_of
from exitlens.types.settings import SCORES

EXITS, CLASSES = 4, 1000
COST = torch.tensor([0.2, 0.4, 0.7, 1.0])
TEMPERATURES = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0)
LIMITS = {"max_accuracy_drop": 0.01, "max_disagreement": 0.2, "max_divergence": 0.2}
PIXELS, BATCH = 32, 128


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {
        "agreement": partial(measure_agreement, 300 if quick else 10_000),
        "million": partial(measure_million, 20_000 if quick else 1_000_000),
        "collecting": partial(measure_collecting, (256, 1024) if quick else (2_000, 20_000)),
    }


def draw_logits(count: int, seed: int) -> tuple[Tensor, Tensor]:  # (N,K,C), (N,)
    """Later exits are better; classes come in families, so that the runners-up are near; samples differ in difficulty."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    logits = 1.5 * torch.randn(count, 1, CLASSES, generator=rng) + torch.randn(count, EXITS, CLASSES, generator=rng)
    relatives = (labels[:, None] // 20) * 20 + torch.arange(20)
    strength = torch.tensor([4.0, 5.0, 6.0, 7.0]) * (0.3 + 1.4 * torch.rand(count, 1, generator=rng))
    logits.scatter_add_(2, relatives[:, None].expand(-1, EXITS, -1), (0.5 * strength)[..., None].expand(-1, -1, 20))
    logits.scatter_add_(2, labels[:, None, None].expand(-1, EXITS, 1), 0.6 * strength[..., None])
    return logits, labels


def draw_divergence(count: int, seed: int) -> Tensor:  # (N,K)
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, EXITS, generator=rng) * torch.tensor([0.5, 0.3, 0.1, 0.0])


def make_million(prototypes: int, count: int) -> xl.Trace:
    """Return compact logits of ``count`` samples, each a prototype's times a number, which is exactly what full logits would have given."""
    parts, labels = [], []
    for seed in range(math.ceil(prototypes / 500)):
        logits, known = draw_logits(500, seed)
        parts.append(compress(logits, known))
        labels.append(known)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(count, generator=rng) % prototypes
    scale = 0.6 + torch.rand(count, generator=rng)

    def spread(name: str) -> Tensor:
        value = torch.cat([getattr(part, name) for part in parts])[rows]
        return value if name in ("weights", "classes") else value.mul_(scale.view(-1, *[1] * (value.ndim - 1)))

    names = ("top", "classes", "label", "span", "weights")
    whole = xl.types.CompactLogits(**{name: spread(name) for name in names}, num_classes=CLASSES)
    hashes = torch.randint(-(2**62), 2**62, (count,), generator=rng)
    return xl.Trace(whole, torch.cat(labels)[rows], draw_divergence(count, 1), COST, sample_hashes=hashes)


def measure_agreement(count: int) -> Tree:
    """Compare scores, temperatures and routes with those of full logits in float64, and beside them those of full logits in float32."""
    logits, labels = draw_logits(count, 77)
    full, compact = (xl.Trace(kept, labels, draw_divergence(count, 0), COST) for kept in (logits, compress(logits, labels)))
    gaps = {}
    for form, trace in {"compact": compact, "full in float32": full}.items():
        gaps[form] = dict.fromkeys((*SCORES, "squared_error"), 0.0)
        for k in range(EXITS):
            for temperature in TEMPERATURES:
                for name, gap in compare_scores(logits[:, k], trace, k, labels, temperature).items():
                    gaps[form][name] = max(gaps[form][name], gap)
    fitted = [[fit_temperature(trace.logits[:, k], labels) for k in range(EXITS)] for trace in (full, compact)]
    policy = xl.calibrate(full, max_accuracy_drop=0.01)
    return {
        "samples": len(labels),
        "largest_gap": gaps,
        "temperature_gap": max(abs(a / b - 1) for a, b in zip(*fitted, strict=True)),
        "exits_that_differ": (xl.route(full, policy) != xl.route(compact, policy)).float().mean().item(),
    }


def compare_scores(logits: Tensor, trace: xl.Trace, k: int, labels: Tensor, temperature: float) -> dict[str, float]:
    p = (logits.double() / temperature).softmax(1)
    gaps = {name: (score(trace.logits[:, k], name, temperature) - score_of(p, name)).abs().max().item() for name in SCORES}
    squared = (p - F.one_hot(labels, p.shape[1])).square().sum(1)
    rated = rate_probabilities(trace.logits[:, k], labels, temperature)
    return gaps | {"squared_error": (rated.squared_error - squared).abs().max().item()}


def measure_million(count: int) -> Tree:
    path = STUDY.folder / "million.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_alone(take_step, "make", path, count)
        sizes = {"samples": count, "trace_mb": round(path.stat().st_size / 1e6), "full_mb": round(count * 16e3 / 1e6)}
        return sizes | {step: run_alone(take_step, step, path, count) for step in ("calibrate", "certify", "evaluate")}
    finally:
        path.unlink(missing_ok=True)


def take_step(step: str, path: Path, count: int) -> Tree:
    if step == "make":
        make_million(min(count, 10_000), count).save(path)
        return {}
    trace = xl.Trace.load(path)
    works: dict[str, Callable[[], Any]] = {
        "calibrate": lambda: xl.calibrate(trace, **LIMITS),
        "certify": lambda: xl.calibrate(trace, **LIMITS, delta=0.1),
        "evaluate": lambda: xl.evaluate(trace, xl.Policy((0.9, 0.9, 0.8), temperatures=(0.9,) * EXITS)),
    }
    started = time.process_time()
    works[step]()
    return {"cpu_seconds": round(time.process_time() - started, 1), "peak_mb": round(read_peak_memory())}


def measure_collecting(counts: tuple[int, int]) -> Tree:
    return {str(count): run_alone(collect, count) for count in counts}


def collect(count: int) -> Tree:
    torch.manual_seed(0)
    net = xl.attach(xl.build_backbone("small", CLASSES, 3), 3, CLASSES, torch.zeros(1, 3, PIXELS, PIXELS))

    def make_batches() -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1)
        for start in range(0, count, BATCH):
            rows = min(BATCH, count - start)
            yield torch.randn(rows, 3, PIXELS, PIXELS, generator=rng), torch.randint(0, CLASSES, (rows,), generator=rng)

    xl.collect(net, make_batches())
    return {"peak_mb": round(read_peak_memory())}


def read_peak_memory() -> float:
    """Return the most megabytes that this process held, mapped files included (getrusage counts what the parent held, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def list_promises(runs: Runs) -> Iterator[Promise]:
    if "agreement" in runs:
        gap = max(runs["agreement"]["largest_gap"]["compact"].values())
        what = "compact traces: largest gap of a score from the full logits in float64"
        yield Promise("traces|agreement", what, gap, "<=", 1e-6, exact=True)
        what = "compact traces: samples that take another exit than in full"
        yield Promise("traces|routes", what, runs["agreement"]["exits_that_differ"], "<=", 0.0, exact=True)
    for step in ("calibrate", "certify", "evaluate") if "million" in runs else ():
        what = f"1,000,000 samples, 4 exits, 1,000 classes: {step}, MB of the whole process"
        yield Promise(f"traces|{step}|memory", what, runs["million"][step]["peak_mb"], "<=", 2000)
    if "collecting" in runs:
        few, many = (tree["peak_mb"] for name, tree in runs["collecting"].items() if name.isdigit())
        what = "collect, 20,000 samples of 1,000 classes: MB above 2,000"
        yield Promise("traces|collect", what, many - few, "<=", 300)


STUDY = Study("traces", list_cells, list_promises)
