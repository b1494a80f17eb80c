"""tune: finds how a network runs fastest on this machine, by measuring for a few seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import ExitlensError, InputError
from exitlens.functional.routing import find_first_firing
from exitlens.functional.scores import score
from exitlens.functional.thresholds.pvalues import upper_bound
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.process import apply_tuning
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.malloc import can_keep_memory, keep_memory
from exitlens.types import Policy

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
) -> Tuning:
    """See :meth:`~exitlens.model.network.ExitNet.tune`; ``activations`` is its example as the first stage takes it."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if not 0 < min_agreement <= 1 or not seconds > 0:
        raise InputError(f"min_agreement, seconds: expected a share in (0, 1] and a time, got {min_agreement}, {seconds}")
    facts: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": torch.get_num_threads()}
    meter = _Meter(stages, heads, activations, seconds / 4)
    best = meter.find_fastest(_list_formats(meter, policy, precision, min_agreement, facts))
    if can_keep_memory() and activations[0].device.type == "cpu":  # first, since it changes which micro-batch is best
        best = meter.find_fastest([replace(best, keep_memory=True), best])
    sizes = [replace(best, micro_batch=size) for size in MICRO_BATCHES]
    best = meter.find_fastest(sizes, stop_early=True)  # of nearly equal ones the smallest: survivors fill it sooner
    if torch.get_num_threads() > 1:
        best = meter.find_fastest([best, replace(best, threads=1)])
    times = [tuning.to_dict() | {"ms": round(1000 * s, 4)} for tuning, s in meter.found.items()]
    facts["ms_per_sample"] = [{name: value for name, value in row.items() if name != "measured"} for row in times]
    return replace(best, measured=facts)


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
        self.engines: dict[tuple[bool, bool, str], Engine] = {}  # one copy of the weights for each form

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

    def _run(self, tuning: Tuning) -> Callable[[], float]:
        form = tuning.channels_last, tuning.folded, tuning.precision
        engine = self.engines.setdefault(form, self.engines.get(form) or Engine.prepare(self.stages, self.heads, tuning))
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
    same = (half.argmax(2) == full.argmax(2)).float().mean(0).min().item()
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


def _decide(logits: Tensor, policy: Policy) -> Tensor:  # (N,K,C) -> (N,2): exit and label
    early = range(policy.num_exits - 1)
    scores = [score(logits[:, k], policy.score, policy.temperatures[k]) for k in early]
    exits = find_first_firing(torch.stack(scores, 1) if scores else logits.new_empty(len(logits), 0), policy.thresholds)
    return torch.stack([exits, logits[torch.arange(len(logits)), exits].argmax(1)], 1)
