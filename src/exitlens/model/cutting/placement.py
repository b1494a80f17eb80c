"""Where an exit can go: every place on the backbone's path that one feature map alone crosses, with its cost and time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise, zip_longest
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from exitlens.errors import AttachError, InputError
from exitlens.modalities import recognise_example
from exitlens.model.backbones.build import build_backbone, make_example
from exitlens.model.cutting.boundaries import Kind, find_cut_nodes, find_exit_nodes
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.model.cutting.trace import Interpreter, TracedBackbone, run_fake, run_real, trace
from exitlens.model.process import hold_memory
from exitlens.types import ExitCandidate
from exitlens.types.inputs import Inputs, list_tensors, map_inputs

Placement = Literal["cost", "time"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
RUNS = 3
SAMPLES = 4  # in a timed run, so that calls and the reading of weights do not hide what the maps take
SECONDS = 1.5
MOST_SECONDS = 10.0  # of all runs together, if two runs take no longer
SAME_TIME = 0.05
TIE = 0.02  # share of the backbone's time: places whose distances from an exit's share differ by less are equally good


def list_exit_candidates(
    backbone: nn.Module | str, example: Inputs | None = None, *, runs: int = RUNS
) -> list[ExitCandidate]:
    """List the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens, and its padding mask) is all that the rest of the
    network needs, so not in the middle of a residual block, where ``attach`` can cut too. A module that runs more than once
    is not listed.

    Args:
        backbone: a module or a source such as ``"timm:resnet18"``.
        example: inputs as :func:`~exitlens.model.attach.attach` takes them, of which the first sample is used; by default an
            image of 3x224x224, or a text of 64 tokens.
        runs: the least number of timed runs, which take about 1.5 s; with 0 no time is measured.

    Examples:
        >>> [point.name for point in xl.list_exit_candidates("small", images[:1], runs=1)][2:5]
        ['stem', 'layer1', 'layer2']
    """
    backbone = build_backbone(backbone, 1000) if isinstance(backbone, str) else backbone
    if example is None:
        like = next(backbone.parameters(), torch.zeros(()))
        example = map_inputs(make_example(backbone), lambda t: t.to(like) if t.is_floating_point() else t.to(like.device))
    with preserve_state(backbone):
        traced, nodes, points = _find_points(backbone, example)
        if not runs:
            return points
        timer = NodeTimer(traced, nodes)
        timer.run(runs, SECONDS)
        return [replace(point, time_share=share) for point, share in zip(points, timer.shares(), strict=True)]


def check_places(backbone: nn.Module, at: Sequence[str], example: Inputs) -> None:
    """Raise :class:`AttachError` if the backbone lacks a module of one of these names: quick, before weights are loaded."""
    known = dict(backbone.named_modules())
    if not all(name in known for name in at):
        with preserve_state(backbone):
            find_cut_nodes(_trace_first(backbone, example), at)


def _trace_first(backbone: nn.Module, example: Inputs) -> TracedBackbone:
    """Trace the backbone in evaluation mode with the example's first sample."""
    recognise_example(example)
    return trace(backbone, False, map_inputs(example, lambda t: t[:1]))


def _find_points(
    backbone: nn.Module, example: Inputs, layout: Kind | None = None
) -> tuple[TracedBackbone, list[fx.Node], list[ExitCandidate]]:
    traced = _trace_first(backbone, example)
    nodes, macs = find_exit_nodes(traced, layout), count_node_macs(traced)
    total, up_to = max(sum(macs.values()), 1), list(accumulate(macs[n] for n in traced.nodes))
    reached = [(node, up_to[traced.position(node)]) for node in nodes]
    points = [ExitCandidate(str(traced.name_of(n)), mac, mac / total, traced.shape_of(n)[1:], 0.0) for n, mac in reached]
    return traced, nodes, points


def place_exits(
    backbone: nn.Module, example: Inputs, count: int, layout: Kind | None = None, *, placement: Placement = "cost"
) -> list[str]:
    """Return the names of ``count`` places closest to equal shares, 1/(count+1) and so on, of cost or of measured time."""
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    traced, nodes, points = _find_points(backbone, example, layout)
    try:
        if placement == "cost":
            return choose_points(points, count)
        return choose_by_time(points, count, NodeTimer(traced, nodes))
    except AttachError as error:
        if not traced.repeated:
            raise
        name, (times, _) = max(traced.repeated.items(), key=lambda item: item[1][0])
        raise AttachError(f"{error} ({name!r}, for example, runs {times} times: no name says after which)") from error


def choose_by_time(points: Sequence[ExitCandidate], count: int, timer: NodeTimer) -> list[str]:
    """Choose by the times of all runs, once each half of the runs chooses the same places or places as good (``TIE``)."""
    choose_points(points, count, "time")  # raises if they do not fit
    while True:
        timer.run(2 * RUNS, SECONDS)
        shares = [timer.shares(half) for half in (None, 0, 1)]
        timed = [[replace(p, time_share=s) for p, s in zip(points, half, strict=True)] for half in shares]
        chosen, *halves = (choose_points(places, count, "time") for places in timed)
        share_of = {p.name: p.time_share for p in timed[0]}
        gaps = [[abs(share_of[name] - (k + 1) / (count + 1)) for k, name in enumerate(names)] for names in (chosen, *halves)]
        if all(abs(a - b) < TIE for half in gaps[1:] for a, b in zip(gaps[0], half, strict=True)):
            return chosen
        if timer.seconds >= MOST_SECONDS:
            raise AttachError(
                f"placement: the machine is too busy to place exits by time: halves of {len(timer.times)} runs chose "
                f"{halves[0]} and {halves[1]}. Fix: try again with nothing else running, name places (at={chosen}), or take "
                "placement='cost'"
            )


def choose_points(points: Sequence[ExitCandidate], count: int, placement: Placement = "cost") -> list[str]:
    """Choose by shares among places that cost something, the last of those that cost the same (or take as long)."""

    def is_superseded(point: ExitCandidate, following: ExitCandidate | None) -> bool:
        if following is None or following.macs > point.macs:
            return False
        return placement == "cost" or following.time_share - point.time_share < SAME_TIME

    points = [p for p, following in zip_longest(points, points[1:]) if p.macs and not is_superseded(p, following)]
    if len(points) < count:
        names = [p.name for p in points]
        raise AttachError(f"at: {count} early exits do not fit, this backbone has {len(points)} places for them: {names}")
    shares = [p.time_share if placement == "time" else p.cost for p in points]
    chosen: list[int] = []
    for k in range(count):
        target = (k + 1) / (count + 1)
        first, last = (chosen[-1] + 1 if chosen else 0), len(points) - (count - k)
        chosen.append(min(range(first, last + 1), key=lambda i: abs(shares[i] - target)))
    return [points[i].name for i in chosen]


def count_macs(run: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Return the MACs of one call, by ``torch.utils.flop_counter`` (not of normalisation or pooling), and its result."""
    with torch.no_grad(), _disable_fused_kernels(), FlopCounterMode(display=False) as counter:
        out = run(*args)
    return int(counter.get_total_flops()) // 2, out


class _Counter(Interpreter):
    """Runs a graph and keeps the MACs of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs = dict[fx.Node, int]()

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return value


def count_node_macs(traced: TracedBackbone) -> dict[fx.Node, int]:
    """Return the MACs of every node for the example in evaluation mode, of a large network without computing if possible."""
    module = traced.runnable()
    with preserve_state(traced.backbone), _disable_fused_kernels(), switch_mode(module, False), torch.no_grad():
        return run_fake(_Counter, module, list_tensors(traced.example)).macs


@contextmanager
def _disable_fused_kernels() -> Iterator[None]:
    """Do without the fused kernels of attention and recurrent layers, which PyTorch's counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other settings that flags() touches
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class NodeTimer:
    """Times the parts of a backbone between nodes: runs alternate between two halves, and the shortest time counts.

    The graph runs as generated code with a clock after every node, because an interpreter would add its own time to each.
    Runs are on ``SAMPLES`` copies of the example's first sample, or on one if they take long.
    """

    def __init__(self, traced: TracedBackbone, nodes: Sequence[fx.Node]) -> None:
        self._traced, self.seconds = traced, 0.0
        self.times, self._noted = list[list[float]](), list[float]()  # of the parts, in every run; in the latest run
        self._tensors = [torch.cat([t[:1]] * SAMPLES) for t in list_tensors(traced.example)]
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(traced.graph, copies))
        for node in nodes:
            with graph.inserting_after(copies[node]):
                graph.call_function(self.note_time)
        self.module = traced.runnable(graph)

    def run(self, runs: int, seconds: float) -> None:
        """Do at least ``runs`` runs more, for ``seconds``; fewer, but two in all, once ``MOST_SECONDS`` have passed."""
        # inference mode would spoil for training what a forward keeps
        with switch_mode(self.module, False), torch.no_grad(), torch.random.fork_rng(devices=[]), hold_memory():
            started = time.perf_counter()
            if not self.times:
                run_real(Interpreter, self._traced.runnable(), [t.clone() for t in self._tensors])
                if 4 * (time.perf_counter() - started) > MOST_SECONDS:
                    self._tensors = [t[:1] for t in self._tensors]
            started, enough, before = time.perf_counter(), len(self.times) + runs, self.seconds
            while len(self.times) < enough or time.perf_counter() - started < seconds:
                if len(self.times) >= 2 and self.seconds >= MOST_SECONDS:
                    break
                self.times.append(self.time_parts(self._tensors))
                self.seconds = before + time.perf_counter() - started

    def time_parts(self, tensors: Sequence[Tensor]) -> list[float]:
        """Return the seconds of every part in one run, on copies, because a backbone may change its input."""
        copies, self._noted = [t.clone() for t in tensors], []
        self.note_time()
        self.module(*copies)
        self.note_time()
        return [later - earlier for earlier, later in pairwise(self._noted)]

    def note_time(self) -> None:
        """Note the time, once the device has done what came before."""
        if self._tensors[0].device.type != "cpu":
            torch.accelerator.synchronize(self._tensors[0].device)
        self._noted.append(time.perf_counter())

    def shares(self, half: int | None = None) -> list[float]:
        """Return the share of the time up to each node, by all runs or by those of one half (0 or 1)."""
        shortest = list(map(min, zip(*(self.times if half is None else self.times[half::2]), strict=True)))
        return [seconds / sum(shortest) for seconds in accumulate(shortest[:-1])]
