"""tune: find a network's fastest tuning on this machine by measuring for a few seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import EngineError, ExitlensError, InputError, MissingExtraError, is_installed
from exitlens.functional.certification import upper_bound
from exitlens.functional.routing import find_first_firing
from exitlens.functional.scores import score
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx_files import build_engine
from exitlens.model.engine.tuning import BACKENDS, Tuning, apply_tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.process import can_keep_memory, keep_memory
from exitlens.types import Policy
from exitlens.types.tasks import are_same, find_answers

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = 8  # samples of a run, where the micro-batch is not larger
NEARLY = 1.03  # times within this ratio count as equal


def tune(
    parts: tuple[Sequence[Stage], Sequence[ExitHead]],
    activations: Activations,
    policy: Policy | None,
    precision: str,
    min_agreement: float,
    seconds: float,
    backend: str = "auto",
) -> Engine:
    """Return the fastest engine for stages and heads; see :meth:`~exitlens.model.network.ExitNet.tune`."""
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend: expected 'auto' or one of {BACKENDS}, got {backend!r}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if not 0 < min_agreement <= 1:
        raise InputError(f"min_agreement: expected a share in (0, 1], got {min_agreement}")
    if not seconds > 0:
        raise InputError(f"seconds: expected a time above 0, got {seconds}")
    meter = _Meter(parts, activations, seconds / 4)
    torch_forms = [] if backend == "onnx" else meter.list_torch_forms(policy, precision, min_agreement)
    groups = [forms for forms in (meter.list_onnx_forms(backend, precision), torch_forms) if forms]
    # ONNX Runtime comes first, and so wins ties, because it is better at single samples
    best = meter.find_fastest([meter.tune_group(forms) for forms in groups])
    times = [tuning.to_dict() | {"ms": round(1000 * s, 4)} for tuning, s in meter.seconds_per_sample.items()]
    rows = [{name: value for name, value in row.items() if name != "measured"} for row in times]
    engine = meter.open(best)
    engine.tuning = replace(best, measured=meter.record | {"ms_per_sample": rows})
    return engine


class _Meter:
    """Lists tunings, times them in turn, and remembers the times."""

    def __init__(self, parts: tuple[Sequence[Stage], Sequence[ExitHead]], example: Activations, seconds: float) -> None:
        self.parts, self.example, self.seconds = parts, example, seconds
        self.record: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
        }
        rows = torch.arange(MICRO_BATCHES[-1]) % len(example[0])
        self.activations = tuple(t[rows.to(t.device)] for t in example)
        self.seconds_per_sample: dict[Tuning, float] = {}
        self.engines: dict[tuple[bool, bool, str, str], Engine] = {}  # one copy of the weights for each form

    def list_onnx_forms(self, backend: str, precision: str) -> list[Tuning]:
        """Return the tuning for ONNX Runtime, if the network runs in it; else raise if it was asked for, or record why."""
        if backend == "torch" or (backend == "auto" and not is_installed("onnxruntime", "onnx", "onnxscript")):
            return []
        tuning = Tuning(micro_batch=FEW, backend="onnx")
        try:
            if precision == "bfloat16":
                raise EngineError("backend: 'onnx' does not run in bfloat16. Fix: leave one of the two at 'auto'.")
            self.open(tuning)
        except (EngineError, MissingExtraError) as error:  # an installed package may still fail to load
            if backend == "onnx":
                raise
            self.record["onnx"] = str(error)
            return []
        return [tuning]

    def list_torch_forms(self, policy: Policy | None, precision: str, min_agreement: float) -> list[Tuning]:
        """Return the memory formats and precisions that the network may run in; record the measured agreement."""
        forms = [Tuning(micro_batch=FEW)]
        if any(t.ndim == 4 for t in self.example):
            forms.append(replace(forms[0], channels_last=True, folded=True))
        if precision == "float32":
            return forms
        halves = [replace(tuning, precision="bfloat16") for tuning in forms]
        try:
            half = self.compute_logits(halves[-1])
        except ExitlensError:
            raise
        except Exception as error:  # graphs made by torch.export may have the example's precision written into them
            if precision == "bfloat16":
                fix = "Fix: leave it at 'float32'."
                raise InputError(f"precision: this network does not run in bfloat16. {fix}") from error
            return forms
        full, task, count = self.compute_logits(forms[-1]), "classes" if policy is None else policy.task, len(half)
        agreement = are_same(find_answers(half, task), find_answers(full, task), task).float().mean(0).min().item()
        if policy is not None:
            same = (_decide(half, policy) == _decide(full, policy)).all(1)
            agreement = min(agreement, same.float().mean().item())
        self.record["bfloat16_agreement"], self.record["bfloat16_samples"] = agreement, count
        if precision == "bfloat16":
            return halves
        is_safe = upper_bound(round((1 - agreement) * count), count, 0.05) <= 1 - min_agreement
        return forms + halves if is_safe else forms

    def compute_logits(self, tuning: Tuning) -> Tensor:  # -> (N,K,C)
        """Return the logits of the example in a tuning's form."""
        engine, batches = self.open(tuning), []
        with engine.mode():
            for part in zip(*(t.split(16) for t in self.example), strict=True):
                outputs = engine.compute_outputs(tuning.convert(part))
                batches.append(torch.stack([logits.float() for logits, _ in outputs], 1))
            return torch.cat(batches).cpu()

    def tune_group(self, forms: list[Tuning]) -> Tuning:
        """Return the fastest tuning of one backend."""
        best = self.find_fastest(forms)
        if best.backend == "torch" and can_keep_memory() and self.example[0].device.type == "cpu":
            # decided first, because it changes which micro-batch is best
            best = self.find_fastest([replace(best, keep_memory=True), best])
        sizes = [replace(best, micro_batch=size) for size in MICRO_BATCHES]
        best = self.find_fastest(sizes, stop_early=True)  # the smallest wins ties, because survivors fill it sooner
        return self.find_fastest([best, replace(best, threads=1)]) if torch.get_num_threads() > 1 else best

    def find_fastest(self, tunings: Sequence[Tuning], stop_early: bool = False) -> Tuning:
        """Return the first tuning (simplest first) whose time per sample is within ``NEARLY`` of the lowest.

        ``stop_early``: leave out all tunings after the first that is no better than its predecessors.
        """
        times, runs = self.seconds_per_sample, dict[Tuning, Callable[[], float]]()
        for tuning in tunings:
            before = min((times[t] for t in runs), default=float("inf"))
            runs[tuning] = partial(self._run, tuning)
            times[tuning] = min(runs[tuning]() for _ in range(2))  # the first run also warms up
            if stop_early and tuning.micro_batch > FEW and times[tuning] * NEARLY > before:
                break
        started, rounds = time.perf_counter(), 0
        while rounds < 2 or (time.perf_counter() - started < self.seconds and rounds < 50):
            for tuning, run in runs.items():
                times[tuning] = min(times[tuning], run())
            rounds += 1
        limit = NEARLY * min(times[tuning] for tuning in runs)
        return next(tuning for tuning in runs if times[tuning] <= limit)

    def open(self, tuning: Tuning) -> Engine:
        """Return the engine in a tuning's form."""
        form = tuning.channels_last, tuning.folded, tuning.precision, tuning.backend
        if form not in self.engines:
            self.engines[form] = build_engine(*self.parts, tuning, tuple(t[:1] for t in self.example))
        return self.engines[form]

    def _run(self, tuning: Tuning) -> float:
        """Return the seconds per sample."""
        engine, count = self.open(tuning), max(FEW, tuning.micro_batch)
        for _ in range(1 + keep_memory(tuning.keep_memory)):  # after a change, the first run warms up
            with apply_tuning(tuning), engine.mode():
                started = time.perf_counter()
                inputs = engine.enter(tuple(t[:count] for t in self.activations))
                for at in range(0, count, tuning.micro_batch):
                    activations = tuple(t[at : at + tuning.micro_batch] for t in inputs)
                    for k in range(len(engine.heads)):
                        activations, p, *_ = engine.answer(k, activations, 1.0, "max_probability")
                float(p.sum())  # waits for the device
                spent = time.perf_counter() - started
        return spent / count


def _decide(logits: Tensor, policy: Policy) -> Tensor:  # (N,K,C) -> (N,2): exit and label, or (N,1+C): exit and labels
    early = range(policy.num_exits - 1)
    scores = [score(logits[:, k], policy.score, policy.temperatures[k]) for k in early]
    exits = find_first_firing(torch.stack(scores, 1) if scores else logits.new_empty(len(logits), 0), policy.thresholds)
    answers = find_answers(logits[torch.arange(len(logits)), exits], policy.task)
    return torch.cat([exits[:, None], answers.view(len(logits), -1).long()], 1)
