"""tune: finds how a network runs fastest on this machine, by measuring for a few seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import EngineError, ExitlensError, InputError, MissingExtraError, is_installed
from exitlens.functional.routing import find_first_firing
from exitlens.functional.scores import score
from exitlens.functional.thresholds.pvalues import upper_bound
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.process import apply_tuning
from exitlens.model.engine.session import prepare_engine
from exitlens.model.engine.tuning import BACKENDS, Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.malloc import can_keep_memory, keep_memory
from exitlens.types import Policy
from exitlens.types.tasks import Task, are_same, find_answers

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = 8  # samples of a run, where the micro-batch is not larger
NEARLY = 1.03  # times that count as equal


def tune(
    stages: Sequence[Stage],
    heads: Sequence[ExitHead],
    activations: Activations,
    policy: Policy | None,
    precision: str,
    min_agreement: float,
    seconds: float,
    backend: str = "auto",
) -> Engine:
    """The fastest engine; see :meth:`~exitlens.model.network.ExitNet.tune`.

    ``activations`` is its example as the first stage takes it.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend: expected 'auto' or one of {BACKENDS}, got {backend!r}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if not 0 < min_agreement <= 1 or not seconds > 0:
        raise InputError(f"min_agreement, seconds: expected a share in (0, 1] and a time, got {min_agreement}, {seconds}")
    facts: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": torch.get_num_threads()}
    meter = _Meter(stages, heads, activations, seconds / 4)
    formats = [] if backend == "onnx" else _list_formats(meter, policy, precision, min_agreement, facts)
    kinds = [kind for kind in (_list_onnx(meter, backend, precision, facts), formats) if kind]
    best = meter.find_fastest([_tune_kind(meter, kind) for kind in kinds])  # the first of equals: better at single samples
    times = [tuning.to_dict() | {"ms": round(1000 * s, 4)} for tuning, s in meter.found.items()]
    facts["ms_per_sample"] = [{name: value for name, value in row.items() if name != "measured"} for row in times]
    return meter.close(replace(best, measured=facts))


def _tune_kind(meter: _Meter, formats: list[Tuning]) -> Tuning:
    """The fastest in one backend."""
    best = meter.find_fastest(formats)
    if best.backend == "torch" and can_keep_memory() and meter.given[0].device.type == "cpu":
        # first, since it changes which micro-batch is best
        best = meter.find_fastest([replace(best, keep_memory=True), best])
    sizes = [replace(best, micro_batch=size) for size in MICRO_BATCHES]
    best = meter.find_fastest(sizes, stop_early=True)  # of nearly equal ones the smallest: survivors fill it sooner
    return meter.find_fastest([best, replace(best, threads=1)]) if torch.get_num_threads() > 1 else best


def _list_onnx(meter: _Meter, backend: str, precision: str, facts: dict[str, Any]) -> list[Tuning]:
    """ONNX Runtime, where the network runs in it; why it does not is an error if it was asked for, else one of ``facts``."""
    if backend == "torch" or (backend == "auto" and not is_installed("onnxruntime", "onnx", "onnxscript")):
        return []
    tuning = Tuning(micro_batch=FEW, backend="onnx")
    try:
        if precision == "bfloat16":
            raise EngineError("backend: 'onnx' does not run in bfloat16: leave one of the two at 'auto'")
        meter.open(tuning)
    except (EngineError, MissingExtraError) as error:  # an installed package may still fail to load
        if backend == "onnx":
            raise
        facts["onnx"] = str(error)
        return []
    return [tuning]


def _list_formats(
    meter: _Meter, policy: Policy | None, precision: str, min_agreement: float, facts: dict[str, Any]
) -> list[Tuning]:
    """Memory formats and precisions that the network may run in; what that rests on is added to ``facts``."""
    formats = [Tuning(micro_batch=FEW)]
    if any(t.ndim == 4 for t in meter.given):
        formats.append(replace(formats[0], channels_last=True, folded=True))
    if precision == "float32":
        return formats
    agreement, count = _measure_agreement(meter, formats[-1], policy), len(meter.given[0])
    if agreement is None:
        if precision == "bfloat16":
            raise InputError("precision: this network does not run in bfloat16: leave it at 'float32'")
        return formats
    facts["bfloat16_agreement"], facts["bfloat16_samples"] = agreement, count
    halves = [replace(tuning, precision="bfloat16") for tuning in formats]
    if precision == "bfloat16":
        return halves
    enough = upper_bound(round((1 - agreement) * count), count, 0.05) <= 1 - min_agreement
    return formats + halves if enough else formats


class _Meter:
    """Times tunings against each other, in turn, and remembers what it found."""

    def __init__(self, stages: Sequence[Stage], heads: Sequence[ExitHead], given: Activations, seconds: float) -> None:
        self.stages, self.heads, self.given, self.seconds = stages, heads, given, seconds
        rows = torch.arange(MICRO_BATCHES[-1]) % len(given[0])
        self.activations = tuple(t[rows.to(t.device)] for t in given)
        self.found: dict[Tuning, float] = {}  # seconds a sample
        self.engines: dict[tuple[bool, bool, str, str], Engine] = {}  # one copy of the weights for each form

    def find_fastest(self, tunings: Sequence[Tuning], stop_early: bool = False) -> Tuning:
        """The first tuning (the simplest come first) whose time a sample is within ``NEARLY`` of the lowest.

        ``stop_early``: leave out those after the first that is no better than those before it.
        """
        runs: dict[Tuning, Callable[[], float]] = {}
        for tuning in tunings:
            before = min((self.found[t] for t in runs), default=float("inf"))
            runs[tuning] = self._run(tuning)
            self.found[tuning] = min(runs[tuning]() for _ in range(2))  # the first warms up, too
            if stop_early and tuning.micro_batch > FEW and self.found[tuning] * NEARLY > before:
                break
        started, rounds = time.perf_counter(), 0
        while rounds < 2 or (time.perf_counter() - started < self.seconds and rounds < 50):
            for tuning, run in runs.items():
                self.found[tuning] = min(self.found[tuning], run())
            rounds += 1
        limit = NEARLY * min(self.found[tuning] for tuning in runs)
        return next(tuning for tuning in runs if self.found[tuning] <= limit)

    def open(self, tuning: Tuning) -> Engine:
        """The engine of a tuning's form."""
        form = tuning.channels_last, tuning.folded, tuning.precision, tuning.backend
        if form not in self.engines:
            example = tuple(t[:1] for t in self.given)
            self.engines[form] = prepare_engine(self.stages, self.heads, tuning, lambda: example)
        return self.engines[form]

    def close(self, tuning: Tuning) -> Engine:
        """The engine that was chosen."""
        engine = self.open(tuning)
        engine.tuning = tuning
        return engine

    def _run(self, tuning: Tuning) -> Callable[[], float]:
        engine = self.open(tuning)
        count = max(FEW, tuning.micro_batch)

        def once() -> float:
            with apply_tuning(tuning), engine.mode():
                started = time.perf_counter()
                given = engine.enter(tuple(t[:count] for t in self.activations))
                for at in range(0, count, tuning.micro_batch):
                    activations = tuple(t[at : at + tuning.micro_batch] for t in given)
                    for k in range(len(self.heads)):
                        activations, p, *_ = engine.answer(k, activations, 1.0, "max_probability")
                float(p.sum())  # waits for the device
                return (time.perf_counter() - started) / count

        def run() -> float:
            if keep_memory(tuning.keep_memory):
                once()
            return once()

        return run


def _measure_agreement(meter: _Meter, like: Tuning, policy: Policy | None) -> float | None:
    """Share of samples with the same label in bfloat16, at the exit where they agree least; with a policy also of answers.

    ``None`` if the network does not run in bfloat16.
    """
    try:
        half = _compute_logits(meter, replace(like, precision="bfloat16"))
    except ExitlensError:
        raise
    except Exception:  # graphs made by torch.export may have the example's precision written into them
        return None
    full = _compute_logits(meter, replace(like, precision="float32"))
    task: Task = "classes" if policy is None else policy.task
    same = are_same(find_answers(half, task), find_answers(full, task), task).float().mean(0).min().item()
    if policy is not None:
        same = min(same, (_decide(half, policy) == _decide(full, policy)).all(1).float().mean().item())
    return same


def _compute_logits(meter: _Meter, tuning: Tuning, size: int = 16) -> Tensor:  # -> (N,K,C)
    engine, found = Engine.prepare(meter.stages, meter.heads, tuning), []
    with engine.mode():
        for at in range(0, len(meter.given[0]), size):
            outputs = engine.compute_outputs(engine.enter(tuple(t[at : at + size] for t in meter.given)))
            found.append(torch.stack([logits.float() for logits, _ in outputs], 1))
        return torch.cat(found).cpu()


def _decide(logits: Tensor, policy: Policy) -> Tensor:  # (N,K,C) -> (N,2): exit and label, or (N,1+C): exit and labels
    early = range(policy.num_exits - 1)
    scores = [score(logits[:, k], policy.score, policy.temperatures[k]) for k in early]
    exits = find_first_firing(torch.stack(scores, 1) if scores else logits.new_empty(len(logits), 0), policy.thresholds)
    answers = find_answers(logits[torch.arange(len(logits)), exits], policy.task)
    return torch.cat([exits[:, None], answers.view(len(logits), -1).long()], 1)
