"""The plain backbone and the network with exits, timed side by side, and the measured saving beside the ideal one."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.profiler import ProfilerActivity, profile

from exitlens.model._torch_compat import mark_any_count
from exitlens.model.cutting.split import Activations
from exitlens.model.cutting.trace import pick_logits, trace
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx_files import OnnxFile
from exitlens.model.engine.router import Router
from exitlens.model.engine.tuning import Tuning, apply_tuning, prepare_graph
from exitlens.model.heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.model.process import keep_memory
from exitlens.model.timing import Times, Work, interleave, interval
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, count_rows, list_tensors, map_inputs, split_rows
from exitlens.types.tasks import USUAL_SCORES
from exitlens.workflow.inference import merge_routed, predict

AS_IS, TUNED, COMPILED = "plain, as PyTorch runs it", "plain, tuned", "plain, compiled"
STEPS = "stages alone"
SHARES: dict[str, tuple[float, ...]] = {
    "nobody leaves": (0, 0, 0, 1),
    "all at exit 0": (1, 0, 0, 0),
    "50/30/0/20": (0.5, 0.3, 0, 0.2),
    "40/30/20/10": (0.4, 0.3, 0.2, 0.1),
}
MIXED = "50/30/0/20"
UNREACHABLE_THRESHOLD = 2.0  # exits with this threshold are computed, but never answer


def time_calls(run: Callable[[Any], object], batches: Sequence[Any], kept: bool = False) -> Work:
    """Return the work of running each batch in order, after an untimed first one where there are several or memory changes.

    With ``kept`` the process keeps its memory meanwhile.
    """

    def work() -> list[float]:
        if keep_memory(kept) or len(batches) > 1:
            run(batches[0])
        spent = []
        for batch in batches:
            started = time.perf_counter()
            run(batch)
            spent.append(time.perf_counter() - started)
        return spent

    return work


def compare(
    first: Callable[..., Any],
    second: Callable[..., Any],
    batches: Sequence[tuple[Any, ...]],
    rounds: int,
    kept: bool = False,
) -> dict[str, float]:
    """Time two functions on the same batches of arguments; ``kept`` as in :func:`time_calls`, for the second.

    ``speedup`` is the ratio of the times in the same round, the median over rounds, with its 95 % interval from ``low`` to
    ``high``; ``plain_ms`` and ``ours_ms`` are median milliseconds per sample. ``images`` counts those of a round.
    """
    works = {
        "first": time_calls(lambda batch: first(*batch), batches),
        "second": time_calls(lambda batch: second(*batch), batches, kept),
    }
    times = interleave(works, rounds=rounds)
    sizes = [count_rows(batch[0]) for batch in batches]
    ratio, count = times.ratio("first", "second"), sum(sizes)
    speed = {"batch_size": sizes[0], "speedup": ratio.median, "low": ratio.low, "high": ratio.high}
    speed |= {"plain_ms": times.median_ms("first", count), "ours_ms": times.median_ms("second", count)}
    return speed | {"images": count, "rounds": rounds}


def measure_peak_bytes(work: Work) -> int:
    """Return the most memory that a run of the work held for tensors at once, beyond what was held before (CPU)."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # PyTorch's profiler writes to standard error whenever it starts and stops
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            work()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    result = run.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in result.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def pin_threads(threads: int) -> Iterator[None]:
    """Give PyTorch ``threads`` threads on as many processors inside the block."""
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(threads)
    if allowed is not None:
        os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)


def list_exit_shares(num_exits: int) -> dict[str, tuple[float, ...]]:
    """Return the exit shares to force on a network with this many exits."""
    if num_exits == 4:
        return SHARES
    shares = {"nobody leaves": (0.0,) * (num_exits - 1) + (1.0,)}
    if num_exits > 1:
        shares["all at exit 0"] = (1.0,) + (0.0,) * (num_exits - 1)
        shares["80/20"] = (0.8,) + (0.0,) * (num_exits - 2) + (0.2,)
    return shares


def plan_exits(shares: Sequence[float], count: int) -> Tensor:  # -> (count,)
    """Plan exits for ``count`` samples in these shares (by largest remainders), in random order."""
    exact = torch.tensor(list(shares), dtype=torch.float64) * count / sum(shares)
    counts = exact.floor()
    for k in (exact - counts).argsort(descending=True)[: count - int(counts.sum())].tolist():
        counts[k] += 1
    plan = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    return plan[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


class Bench:
    """A network against its plain backbone, on inputs ``(N,...)``; compiling both as well takes a minute or two."""

    def __init__(
        self, plain: nn.Module, net: ExitNet, inputs: Inputs, policy: Policy | None = None, compiled: bool = False
    ) -> None:
        self.plain, self.net, self.inputs, self.policy = plain.eval(), net.eval(), inputs, policy
        tuning = replace(net.tuning, channels_last=net.tuning.channels_last or net.is_channels_last)
        self.tuned = Plain(plain, inputs, tuning)
        self.compiled_plain = Plain(plain, inputs, tuning, compiled=True) if compiled else None
        self.compiled_net = copy.deepcopy(net) if compiled else None
        if self.compiled_net is not None:
            self.compiled_net.compile()

    def run(
        self,
        size: int,
        *,
        rounds: int = 5,
        seconds: float = 10.0,
        memory: bool = True,
        others: Mapping[str, Callable[[Inputs, int, Mapping[str, Tensor]], Work]] | None = None,
        keep: Callable[[str], bool] = lambda name: True,
    ) -> dict[str, Any]:
        """Time every contender in calls of ``size`` samples, for ``rounds`` and ``seconds`` at least; JSON-ready.

        ``memory`` adds each contender's peak. ``others`` makes further contenders from the inputs, the size and the plans;
        ``keep`` selects contenders by name, apart from the first two, which always run.
        """
        count = {1: 20, 8: 40}.get(size, size)
        rows = torch.arange(count) % count_rows(self.inputs)
        inputs = map_inputs(self.inputs, lambda t: t[rows])
        plans = {name: plan_exits(shares, count) for name, shares in list_exit_shares(self.net.num_exits).items()}
        steps = StepTimes(self.net, inputs, size)
        works = self._list_works(inputs, size, plans) | {STEPS: steps}
        meters = {"": (steps, TUNED)}
        if self.compiled_net is not None:
            works[f"{STEPS}, compiled"] = compiled = StepTimes(self.compiled_net, inputs, size)
            meters[", compiled"] = (compiled, COMPILED)
        works |= {name: make(inputs, size, plans) for name, make in (others or {}).items()}
        works = {name: work for name, work in works.items() if keep(name) or name in (AS_IS, TUNED)}
        times = interleave(works, rounds=rounds, seconds=seconds)
        results = []
        for name in works:
            row = {"name": name} | times.summary(name, count)
            row["speedup"] = times.ratio(AS_IS, name).to_list()
            row["speedup_tuned"] = times.ratio(TUNED, name).to_list()
            for suffix, (meter, reference) in meters.items():
                plan = plans.get(name.removeprefix("exits, ").removesuffix(suffix))
                if plan is not None and name.endswith(suffix) and meter.rounds:
                    row |= _compare_with_ideal(times, name, meter.ideal(plan), reference, plan)
            if memory and not name.startswith(STEPS):
                row["peak_mb"] = round(measure_peak_bytes(works[name]) / 1e6, 3)
            results.append(row)
        return {"batch": size, "samples": count, "rounds": len(times.rounds[TUNED]), "rows": results} | _list_ratios(times)

    def _list_works(self, inputs: Inputs, size: int, plans: Mapping[str, Tensor]) -> dict[str, Work]:
        kept, batches = self.net.tuning.keep_memory, split_rows(inputs, size)
        works = {AS_IS: time_calls(partial(answer_plainly, self.plain), batches)}
        works[TUNED] = time_calls(self.tuned, batches, kept)
        works |= {f"exits, {name}": Planned(self.net, plan).work(inputs, size) for name, plan in plans.items()}
        last, nobody = MIXED if MIXED in plans else list(plans)[-1], plans["nobody leaves"]
        works[f"exits, {last}, whole batches"] = Planned(self.net, plans[last], whole_batches=True).work(inputs, size)
        if have_maps(self.net.heads):
            works["exits, nobody leaves, with attention"] = Planned(self.net, nobody, attention=True).work(inputs, size)
        if self.policy is not None:
            works["exits, policy"] = time_calls(partial(predict, self.net, policy=self.policy), batches, kept)
        if self.net.num_exits > 2:
            works["static, cut at exit 1"] = time_calls(partial(answer_at, self.net, 1), batches, kept)
        if self.compiled_plain is not None and self.compiled_net is not None:
            works[COMPILED] = time_calls(self.compiled_plain, batches, kept)
            for name in plans:
                works[f"exits, {name}, compiled"] = Planned(self.compiled_net, plans[name]).work(inputs, size)
        return works


def _compare_with_ideal(times: Times, name: str, ideal: list[float], reference: str, plan: Tensor) -> dict[str, Any]:
    """Return a plan's time if only stages took any, the ideal time over the measured one, and the share of its saving."""
    ideal = ideal[-len(times.rounds[name]) :]  # without the warm-up
    triples = list(zip(ideal, times.seconds(name), times.seconds(reference), strict=True))
    row: dict[str, Any] = {"ideal_ms": round(1000 * interval(ideal).median / len(plan), 4)}
    row["efficiency"] = interval([least / taken for least, taken, _ in triples]).to_list()
    if max(plan.tolist()) > min(plan.tolist()) or plan[0] == 0:  # somebody leaves early
        row["saving"] = interval([(plain - taken) / (plain - least) for least, taken, plain in triples]).to_list()
    return row


def _list_ratios(times: Times) -> dict[str, Any]:
    nobody, suffix = "exits, nobody leaves", ", compiled"
    pairs = {"nobody_over_plain": (nobody, TUNED), "attention_over_none": (f"{nobody}, with attention", nobody)}
    pairs |= {"nobody_over_plain, compiled": (f"{nobody}{suffix}", COMPILED)}
    pairs |= {f"compiled_over_eager, {name}": (f"{name}{suffix}", name) for name in times.rounds}
    return {key: times.ratio(*pair).to_list() for key, pair in pairs.items() if set(pair) <= set(times.rounds)}


def tabulate(measured: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of a table for people from the result of :meth:`Bench.run`."""
    rows = [["", "ms/sample", "p95 ms", "x plain", "x tuned", "ideal ms", "MB"]]
    for row in measured["rows"]:
        cells = [f"{row['ms'][0]:.3f}", f"{row['call_p95_ms']:.2f}", f"{row['speedup'][0]:.2f}"]
        cells += [f"{row['speedup_tuned'][0]:.2f}", f"{row['ideal_ms']:.3f}" if "ideal_ms" in row else ""]
        rows.append([row["name"], *cells, f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""])
    return rows


def answer_plainly(backbone: nn.Module, batch: Inputs) -> None:
    """Answer a batch as PyTorch runs the backbone: float32, its own memory format, the whole batch."""
    with torch.inference_mode():
        output = backbone(batch) if isinstance(batch, Tensor) else backbone(**batch)
        pick_logits(output).softmax(1).max(1)


class Plain:
    """The backbone with the same tuning as the network with exits."""

    def __init__(self, backbone: nn.Module, example: Inputs, tuning: Tuning, compiled: bool = False) -> None:
        tensors = list_tensors(example)
        images = tensors[0].ndim == 4
        self.tuning = replace(tuning, channels_last=images or tuning.channels_last, backend="torch") if compiled else tuning
        self.compiled = compiled
        if self.tuning.backend == "onnx":
            written = write_plain(backbone, example)
            self.body: Callable[..., Any] = lambda *activations: written(activations)
        else:
            body = trace(backbone, False, map_inputs(example, lambda t: t[:1])).runnable()
            self.body = prepare_graph(body, self.tuning)
        if compiled:
            self.body = torch.compile(self.body, options={"freezing": True})
            several = self.tuning.convert(tuple(torch.cat([t[:1]] * 5) for t in tensors))
            with torch.no_grad():
                self.body(*(mark_any_count(t) for t in several))
                self.body(*(t[:1] for t in several))

    def __call__(self, batch: Inputs) -> None:
        """Answer one batch in micro-batches."""
        with apply_tuning(self.tuning), torch.no_grad() if self.compiled else torch.inference_mode():
            parts = _split(list_tensors(batch), self.tuning)
            logits = [_take_logits(self.body(*self.tuning.convert(part))).float() for part in parts]
            (torch.cat(logits) if len(logits) > 1 else logits[0]).softmax(1).max(1)


def write_plain(backbone: nn.Module, example: Inputs) -> OnnxFile:
    """Write the plain backbone, batch normalisation folded, as an ONNX file that gives logits."""
    body = trace(backbone, False, map_inputs(example, lambda t: t[:1])).runnable()
    folded = _Logits(prepare_graph(body, Tuning(folded=True)).float()).eval()
    return OnnxFile.write(folded, tuple(t[:1] for t in list_tensors(example)), "the plain backbone")


class _Logits(nn.Module):
    """A graph whose output is a tuple of its logits alone."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *activations: Tensor) -> tuple[Tensor]:
        return (_take_logits(self.body(*activations)),)


def _take_logits(output: Any) -> Tensor:
    logits: Tensor = pick_logits(output[0] if isinstance(output, tuple | list) else output)
    return logits


def _split(activations: Activations, tuning: Tuning) -> Iterator[Activations]:
    size = tuning.micro_batch or len(activations[0])
    for at in range(0, len(activations[0]), size):
        yield tuple(t[at : at + size] for t in activations)


class Planned:
    """The network's own path (check, engine, router), except that a plan ``(N,)`` decides where each sample leaves.

    With ``whole_batches`` the samples of a call leave together, at the last of their exits, as in batch-wise early exit.
    """

    def __init__(self, net: ExitNet, plan: Tensor, whole_batches: bool = False, attention: bool = False) -> None:
        self.net, self.plan, self.whole, self.attention = net, plan, whole_batches, attention
        self.leaves = [plan == k for k in range(net.num_exits)]
        first = int(plan[0])
        self.constant = bool((plan == first).all())  # then thresholds suffice
        self.policy = Policy(
            tuple(0.0 if self.constant and k == first else UNREACHABLE_THRESHOLD for k in range(net.num_exits - 1)),
            USUAL_SCORES[net.info.task],
        )

    def work(self, inputs: Inputs, size: int) -> Work:
        """Return the work of answering all the inputs in calls of ``size``."""
        starts = range(0, len(self.plan), size)
        return time_calls(self, list(zip(starts, split_rows(inputs, size), strict=True)), self.net.tuning.keep_memory)

    def __call__(self, call: tuple[int, Inputs]) -> None:
        """Answer a batch, whose first sample is number ``call[0]``."""
        start, batch = call
        with self.net.open_engine() as engine:
            self.answer(engine, start, self.net.check_input(batch))

    def answer(self, engine: Engine, start: int, activations: Activations) -> None:
        """Answer samples ``start`` onwards with this engine."""
        count = len(activations[0])
        size, override = self.net.tuning.micro_batch, None
        if self.whole:
            last = int(self.plan[start : start + count].max())  # the whole batch takes one decision
            size, override = 0, lambda batch, _: (batch.where >= 0) & (batch.exit == last)
        elif not self.constant:
            leaves = [rows[start : start + count] for rows in self.leaves]
            override = lambda batch, _: leaves[batch.exit].index_select(0, batch.where)  # noqa: E731
        router = Router(engine, self.policy, self.attention, size, override)
        merge_routed(self.net, router.run(torch.arange(count), activations))


def answer_at(net: ExitNet, exit_: int, batch: Inputs) -> None:
    """Answer a batch at one exit, in micro-batches: the smaller static network of the same kind."""
    with net.open_engine() as engine:
        for part in _split(net.unpack(batch), net.tuning):
            activations = engine.enter(part)
            for k in range(exit_):
                activations = engine.run_stage(k, activations)
            engine.run_exit(exit_, activations, 1.0, USUAL_SCORES[net.info.task])


class StepTimes:
    """The time of every stage with its head on all samples, from which the ideal saving follows."""

    def __init__(self, net: ExitNet, inputs: Inputs, size: int) -> None:
        self.net, self.batches = net, split_rows(inputs, size)
        self.rounds: list[list[float]] = []

    def __call__(self) -> list[float]:
        """Run all samples through all stages and record the seconds of each."""
        if keep_memory(self.net.tuning.keep_memory) or len(self.batches) > 1:
            self._run(self.batches[:1])
        self.rounds.append(self._run(self.batches))
        return [sum(self.rounds[-1])]

    def _run(self, batches: Sequence[Inputs]) -> list[float]:
        spent = [0.0] * self.net.num_exits
        for batch in batches:
            with self.net.open_engine() as engine:
                for part in _split(self.net.unpack(batch), self.net.tuning):
                    activations = part
                    for k in range(self.net.num_exits):
                        started = time.perf_counter()
                        activations = engine.enter(activations) if k == 0 else activations
                        activations = engine.run_exit(k, activations, 1.0, "max_probability").activations
                        spent[k] += time.perf_counter() - started
        return spent

    def ideal(self, plan: Tensor) -> list[float]:
        """Return each round's seconds for the plan: over exits, the share of samples that reach it times its time."""
        reached = [(plan >= k).double().mean().item() for k in range(self.net.num_exits)]
        return [sum(share * seconds for share, seconds in zip(reached, spent, strict=True)) for spent in self.rounds]
