"""Where an exit can go: every place on the backbone's path at which one feature map alone crosses, with its cost."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from exitlens.errors import AttachError, InputError
from exitlens.model.tracing import TracedGraph, last_features, mode_of, node_layout, shapes, trace


@dataclass(frozen=True)
class ExitPoint:
    """A place for an exit: after module ``name``.

    Attributes:
        name: what to write in ``at``.
        macs: multiply-accumulates of one image up to there. cost: as a fraction of the whole backbone's.
        shape: of the features there without the batch axis, for the example's size.
        time_share: measured share of the backbone's time up to there, on one image, in [0, 1].
    """

    name: str
    macs: int
    cost: float
    shape: tuple[int, ...]
    time_share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class _Meter(fx.Interpreter):
    """Runs a graph and keeps, for every node, the multiply-accumulates or the seconds it took."""

    def __init__(self, root: nn.Module, graph: fx.Graph, count: bool) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.count, self.spent = count, dict[str, float]()

    def run_node(self, n: fx.Node) -> Any:
        if self.count:
            with FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            self.spent[n.name] = counter.get_total_flops() // 2
            return value
        started = time.perf_counter()
        value = super().run_node(n)
        self.spent[n.name] = time.perf_counter() - started
        return value


def exit_points(backbone: nn.Module, example: Tensor, *, runs: int = 5) -> list[ExitPoint]:
    """Lists the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens) is all that the rest of the network needs: not in the
    middle of a residual block (``attach`` can cut there too, carrying what crosses). Where several names mean the same
    place, the shortest is given.

    Args:
        backbone: a module with one image input.
        example: ``(B,C,H,W)`` floats; the first image is used.
        runs: how often the time is measured; the median counts.

    Raises:
        AttachError: if the backbone cannot be traced, or fails on the example.
    """
    example = example[:1]
    traced = trace(backbone, training=False)
    known = shapes(backbone, traced, example)
    order = list(traced.graph.nodes)
    macs = _measure(backbone, traced, example, count=True)
    timed = [_measure(backbone, traced, example, count=False) for _ in range(max(1, runs))]
    seconds = {n.name: statistics.median(run[n.name] for run in timed) for n in order}
    total_macs, total_seconds = sum(macs.values()), sum(seconds.values())
    end = traced.position(last_features(backbone, traced, known))
    points = []
    for place, node in enumerate(order[:end]):
        name = _shortest(traced, node)
        shape = known.get(node.name, ())
        if name is None or not _alone(order, place) or not _is_map(backbone, traced, node, known, example):
            continue
        so_far = sum(macs[n.name] for n in order[: place + 1])
        spent = sum(seconds[n.name] for n in order[: place + 1])
        points.append(ExitPoint(name, int(so_far), so_far / max(total_macs, 1), shape[1:], spent / total_seconds))
    return points


def place_exits(backbone: nn.Module, example: Tensor, count: int) -> list[str]:
    """Names of ``count`` exit points whose costs lie closest to equal shares: 1/(count+1), 2/(count+1) and so on.

    Raises:
        InputError: for a count below 1; AttachError: for more exits than there are places.
    """
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    points = exit_points(backbone, example, runs=1)
    following = [*(p.macs for p in points[1:]), math.inf]  # of places with the same cost the last, after the activation
    points = [p for p, later in zip(points, following, strict=True) if 0 < p.macs < later]
    if len(points) < count:
        names = [p.name for p in points]
        raise AttachError(f"at: {count} early exits do not fit, this backbone has {len(points)} places for them: {names}")
    chosen: list[int] = []
    for k in range(count):
        target = (k + 1) / (count + 1)
        first, last = (chosen[-1] + 1 if chosen else 0), len(points) - (count - k)
        chosen.append(min(range(first, last + 1), key=lambda i: abs(points[i].cost - target)))
    return [points[i].name for i in chosen]


def _measure(backbone: nn.Module, traced: TracedGraph, example: Tensor, count: bool) -> dict[str, float]:
    meter = _Meter(backbone, traced.graph, count)
    with mode_of(backbone, False), torch.no_grad():
        meter.run(example)
    return meter.spent


def _is_map(
    backbone: nn.Module, traced: TracedGraph, node: fx.Node, known: dict[str, tuple[int, ...]], example: Tensor
) -> bool:
    try:
        layout = node_layout(backbone, traced, node, known, example.shape[2:])
    except AttachError:
        return False
    return math.prod(layout.size(known[node.name])) > 1


def _shortest(traced: TracedGraph, node: fx.Node) -> str | None:
    names = [name for name, output in traced.outputs.items() if output is node]
    return min(names, key=lambda name: (name.count("."), len(name))) if names else None


def _alone(order: list[fx.Node], place: int) -> bool:
    """Whether the node at ``place`` is the only one up to there that later nodes use (inputs and constants aside)."""
    later = set(order[place + 1 :])
    crossing = [n for n in order[: place + 1] if n.op != "get_attr" and any(user in later for user in n.users)]
    return crossing == [order[place]]
