"""What is timed: the plain backbone in several forms, and the network with exits at forced exit shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitlens.delivery.bench.timing import Speed, compare, time_calls
from exitlens.errors import InputError
from exitlens.model._torch_compat import mark_any_count
from exitlens.model.cutting.graph import pick_logits
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.cutting.stage import Activations
from exitlens.model.cutting.trace import trace
from exitlens.model.engine.engine import Engine, Step
from exitlens.model.engine.onnx_engine import OnnxFile
from exitlens.model.engine.preparation import prepare_graph
from exitlens.model.engine.router import Router
from exitlens.model.engine.tuning import Tuning, apply_tuning
from exitlens.model.network import ExitNet
from exitlens.model.process import keep_memory
from exitlens.model.timing import Work
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, count_rows, list_tensors, map_inputs, split_rows
from exitlens.workflow.inference import merge_routed, predict

UNREACHABLE_THRESHOLD = 2.0  # exits with this threshold are computed, but never answer


def plan_exits(shares: Sequence[float], count: int, seed: int = 0) -> Tensor:  # -> (count,)
    """Exits for ``count`` samples in these shares (by largest remainders), in random order."""
    exact = torch.tensor(list(shares), dtype=torch.float64) * count / sum(shares)
    counts = exact.floor()
    for k in (exact - counts).argsort(descending=True)[: count - int(counts.sum())].tolist():
        counts[k] += 1
    plan = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    return plan[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


class AsIs:
    """The backbone as PyTorch runs it: float32, its own memory format, whole batches."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def __call__(self, batch: Inputs) -> None:
        """Answers one batch."""
        with torch.inference_mode():
            output = self.backbone(batch) if isinstance(batch, Tensor) else self.backbone(**batch)
            pick_logits(output).softmax(1).max(1)


class Plain:
    """The backbone with the same tuning as the network with exits."""

    def __init__(self, backbone: nn.Module, example: Inputs, tuning: Tuning, compiled: bool = False) -> None:
        images = list_tensors(example)[0].ndim == 4
        self.tuning = replace(tuning, channels_last=images or tuning.channels_last, backend="torch") if compiled else tuning
        self.body, self.compiled = self._prepare(backbone, example), compiled
        if compiled:
            self._compile(list_tensors(example))

    def _prepare(self, backbone: nn.Module, example: Inputs) -> Callable[..., Any]:
        if self.tuning.backend == "onnx":
            written = write_plain(backbone, example)
            return lambda *activations: written(activations)
        return prepare_graph(trace(backbone, False, map_inputs(example, lambda t: t[:1])).runnable(), self.tuning)

    def _compile(self, tensors: Activations) -> None:
        self.body = torch.compile(self.body, options={"freezing": True})
        several = self.tuning.convert(tuple(torch.cat([t[:1]] * 5) for t in tensors))
        with torch.no_grad():
            self.body(*(mark_any_count(t) for t in several))
            self.body(*(t[:1] for t in several))

    def __call__(self, batch: Inputs) -> None:
        """Answers one batch in micro-batches."""
        with apply_tuning(self.tuning), torch.no_grad() if self.compiled else torch.inference_mode():
            activations = list_tensors(batch)
            size = self.tuning.micro_batch or len(activations[0])
            parts = [tuple(t[at : at + size] for t in activations) for at in range(0, len(activations[0]), size)]
            logits = []
            for part in parts:
                output = self.body(*self.tuning.convert(part))
                logits.append(pick_logits(output[0] if isinstance(output, tuple | list) else output).float())
            (torch.cat(logits) if len(logits) > 1 else logits[0]).softmax(1).max(1)


def write_plain(backbone: nn.Module, example: Inputs) -> OnnxFile:
    """The plain backbone, batch normalisation folded, as an ONNX file that gives logits."""
    body = trace(backbone, False, map_inputs(example, lambda t: t[:1])).runnable()
    folded = _Logits(prepare_graph(body, Tuning(folded=True)).float()).eval()
    return OnnxFile.write(folded, tuple(t[:1] for t in list_tensors(example)), "the plain backbone")


class _Logits(nn.Module):
    """A graph whose output is a tuple of its logits alone."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *activations: Tensor) -> tuple[Tensor]:
        output = self.body(*activations)
        return (pick_logits(output[0] if isinstance(output, tuple | list) else output),)


class Planned:
    """The network's own path (check, engine, router), except that a plan decides where each sample leaves.

    Args:
        net: with its tuning, compiled or not.
        plan: ``(N,)`` exits of the samples of ``inputs``, in order.
        whole_batches: the samples of a call leave together, at the last of their exits, as in batch-wise early exit.
        attention: also compute attention maps.
    """

    def __init__(self, net: ExitNet, plan: Tensor, whole_batches: bool = False, attention: bool = False) -> None:
        self.net, self.plan, self.whole, self.attention = net, plan, whole_batches, attention
        self.leaves = [plan == k for k in range(net.num_exits)]
        first = int(plan[0])
        self.constant = bool((plan == first).all())  # then thresholds suffice
        self.policy = Policy(
            tuple(0.0 if self.constant and k == first else UNREACHABLE_THRESHOLD for k in range(net.num_exits - 1))
        )

    def work(self, inputs: Inputs, size: int) -> Work:
        """The work of answering all the inputs in calls of ``size``."""
        starts = range(0, len(self.plan), size)
        return time_calls(self, list(zip(starts, split_rows(inputs, size), strict=True)), self.net.tuning.keep_memory)

    def __call__(self, call: tuple[int, Inputs]) -> None:
        """Answers one batch, whose first sample is number ``call[0]``."""
        start, batch = call
        with self.net.open_engine() as engine:
            self.answer(engine, start, self.net.check_input(batch))

    def answer(self, engine: Engine, start: int, activations: Activations) -> None:
        """Answers samples ``start`` onwards with this engine."""
        count = len(activations[0])
        size, rule = self.net.tuning.micro_batch, None
        if self.whole:
            last = int(self.plan[start : start + count].max())
            size, rule = 0, lambda batch, _: (batch.where >= 0) & (batch.exit == last)  # the whole batch takes one decision
        elif not self.constant:
            leaves = [rows[start : start + count] for rows in self.leaves]
            rule = lambda batch, _: leaves[batch.exit].index_select(0, batch.where)  # noqa: E731
        router = Router(engine, self.policy, self.attention, size, rule)
        merge_routed(self.net, router.run(torch.arange(count), activations))


class _Clocked(Engine):
    """An engine that sums the time spent in stages, heads and the tuning's memory formats."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.stages, engine.heads, engine.tuning, shared=engine.shared)
        self.inner, self.spent = engine, 0.0

    def enter(self, activations: Activations) -> Activations:
        started = time.perf_counter()
        activations = super().enter(activations)
        self.spent += time.perf_counter() - started
        return activations

    def run_step(self, k: int, activations: Activations, attention: bool) -> Step:
        started = time.perf_counter()
        found = self.inner.run_step(k, activations, attention)
        self.spent += time.perf_counter() - started
        return found


def measure_router_share(planned: Planned, inputs: Inputs) -> Callable[[], float]:
    """A function that answers all inputs in one call and returns the share of time spent outside stages and heads.

    That is the time for scores, decisions, gathering and scattering.
    """

    def run() -> float:
        with planned.net.open_engine() as engine:
            meter, activations = _Clocked(engine), planned.net.check_input(inputs)
            started = time.perf_counter()
            planned.answer(meter, 0, activations)
            total = time.perf_counter() - started
        return (total - meter.spent) / total

    return run


class StepTimes:
    """The time of every stage with its head on all samples, from which the ideal saving follows.

    The ideal time sums, over exits, the share of samples that reach the exit times the time of its stage and head.
    """

    def __init__(self, net: ExitNet, inputs: Inputs, size: int) -> None:
        self.net, self.batches = net, split_rows(inputs, size)
        self.rounds: list[list[float]] = []

    def __call__(self) -> list[float]:
        """Runs all samples through all stages and records the seconds of each."""
        if keep_memory(self.net.tuning.keep_memory) or len(self.batches) > 1:
            self._run(self.batches[:1])
        self.rounds.append(self._run(self.batches))
        return [sum(self.rounds[-1])]

    def _run(self, batches: Sequence[Inputs]) -> list[float]:
        spent, policy = [0.0] * self.net.num_exits, Policy((UNREACHABLE_THRESHOLD,) * (self.net.num_exits - 1))
        for batch in batches:
            with self.net.open_engine() as engine:
                activations = self.net.unpack(batch)
                size = self.net.tuning.micro_batch or len(activations[0])
                for at in range(0, len(activations[0]), size):
                    part = tuple(t[at : at + size] for t in activations)
                    for k in range(self.net.num_exits):
                        started = time.perf_counter()
                        part = engine.enter(part) if k == 0 else part
                        part = engine.answer(k, part, 1.0, policy.score).activations
                        spent[k] += time.perf_counter() - started
        return spent

    def ideal(self, plan: Tensor) -> list[float]:
        """Seconds that the plan would take at the times of each round."""
        reached = [(plan >= k).double().mean().item() for k in range(self.net.num_exits)]
        return [sum(share * seconds for share, seconds in zip(reached, spent, strict=True)) for spent in self.rounds]


def split_whole_batches(inputs: Inputs, batch_size: int) -> list[tuple[Inputs]]:
    """Full batches, images in channels_last, the memory format that networks are trained in."""

    def lay_out(t: Tensor) -> Tensor:
        last = t.ndim == 4 and t.shape[1] > 1
        return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    chunks = [chunk for chunk in split_rows(inputs, batch_size) if count_rows(chunk) == batch_size]
    if not chunks:
        raise InputError(f"batch_size: {batch_size} is more than the {count_rows(inputs)} samples there are: use less")
    return [(map_inputs(chunk, lay_out),) for chunk in chunks]


def compare_adaptive(
    plain: nn.Module, net: ExitNet, policy: Policy, inputs: Inputs, batch_size: int, rounds: int = 7
) -> Speed:
    """Plain backbone against :func:`predict` under ``policy``; both in evaluation mode, images in channels_last."""
    batches, kept = split_whole_batches(inputs, batch_size), net.tuning.keep_memory
    with switch_mode(plain, False), switch_mode(net, False):
        return compare(AsIs(plain), lambda batch: predict(net, batch, policy), batches, rounds, kept)
