"""Where an exit can go: every place on the backbone's path at which one feature map alone crosses, with its cost."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from exitlens.errors import AttachError, InputError
from exitlens.functional.inputs import Inputs, map_inputs, tensors_of
from exitlens.model.backbones import build_backbone, zeros_for
from exitlens.model.contract import example_contract
from exitlens.model.cost import unfused
from exitlens.model.graph import TracedGraph
from exitlens.model.layouts import Kind
from exitlens.model.looking import Seen, look, runnable
from exitlens.model.modes import mode_of, untouched
from exitlens.model.places import UncuttableError, check_features, crossing, last_features, node_layout
from exitlens.model.tracing import trace


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

    def __init__(self, module: fx.GraphModule, count: bool) -> None:
        super().__init__(module)
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


def exit_points(backbone: nn.Module | str, example: Inputs | None = None, *, runs: int = 5) -> list[ExitPoint]:
    """Lists the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens, and its padding mask) is all that the rest of the
    network needs: not in the middle of a residual block (``attach`` can cut there too, carrying what crosses). Where several
    names mean the same place, the shortest is given; modules that run more than once have no name for each time.

    Args:
        backbone: a module or a source such as ``"timm:resnet18"``.
        example: images ``(B,C,H,W)`` or tokens as :func:`~exitlens.model.attaching.attach` takes them; the first sample is
            used. By default an image of 3x224x224, or a text of 64 tokens.
        runs: how often the time is measured; the median counts. 0 leaves it at 0.

    Raises:
        AttachError: if the backbone cannot be traced, or fails on the example.
    """
    backbone = build_backbone(backbone, 1000) if isinstance(backbone, str) else backbone
    with untouched(backbone):
        return _points(backbone, zeros_for(backbone) if example is None else example, runs)[0]


def _points(
    backbone: nn.Module, example: Inputs, runs: int, kind: Kind | None = None
) -> tuple[list[ExitPoint], TracedGraph]:
    """The places of :func:`exit_points`, and the graph that they were found in."""
    example_contract(example)
    example = map_inputs(example, lambda t: t[:1])
    traced = trace(backbone, False, example)
    seen = look(backbone, traced, example)
    order = list(traced.graph.nodes)
    end = traced.position(last_features(backbone, traced, seen))
    module = runnable(backbone, traced)
    macs = _count(module, example)
    timed = [_measure(module, example, count=False) for _ in range(runs + 1)][1:] if runs else [dict.fromkeys(macs, 0.0)]
    seconds = {n.name: statistics.median(run[n.name] for run in timed) for n in order}
    total_macs, total_seconds = max(sum(macs.values()), 1), sum(seconds.values()) or 1.0
    masks = _from_other_inputs(traced)
    points, so_far, spent = [], 0.0, 0.0
    for node in order[:end]:
        so_far, spent = so_far + macs[node.name], spent + seconds[node.name]
        name = traced.name_of(node)
        if name and _alone(traced, seen, node, masks) and _is_map(backbone, traced, node, seen, example, kind):
            shape = seen.shapes[node.name][1:]
            points.append(ExitPoint(name, int(so_far), so_far / total_macs, shape, spent / total_seconds))
    return points, traced


def place_exits(backbone: nn.Module, example: Inputs, count: int, layout: Kind | None = None) -> list[str]:
    """Names of ``count`` exit points whose costs lie closest to equal shares: 1/(count+1), 2/(count+1) and so on.

    Raises:
        InputError: for a count below 1; AttachError: for more exits than there are places.
    """
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    points, traced = _points(backbone, example, 0, layout)
    following = [p.macs for p in points[1:]]  # of places with the same cost the last, after the activation
    points = [p for p, later in zip(points, [*following, math.inf], strict=False) if 0 < p.macs < later]
    if len(points) < count:
        names = [p.name for p in points]
        again = max(traced.repeated.items(), key=lambda item: item[1][0], default=None)
        hint = f" ({again[0]!r}, for one, runs {again[1][0]} times: no name says after which)" if again else ""
        raise AttachError(
            f"at: {count} early exits do not fit, this backbone has {len(points)} places for them: {names}{hint}"
        )
    chosen: list[int] = []
    for k in range(count):
        target = (k + 1) / (count + 1)
        first, last = (chosen[-1] + 1 if chosen else 0), len(points) - (count - k)
        chosen.append(min(range(first, last + 1), key=lambda i: abs(points[i].cost - target)))
    return [points[i].name for i in chosen]


def _measure(module: fx.GraphModule, example: Inputs, count: bool) -> dict[str, float]:
    meter = _Meter(module, count)
    with mode_of(module, False), torch.no_grad():
        meter.run(*tensors_of(example))
    return meter.spent


def _count(module: fx.GraphModule, example: Inputs) -> dict[str, float]:
    """MACs by node, without computing if the operations allow it."""
    with unfused():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                return _measure(module, map_inputs(example, fake.from_tensor), count=True)
        except Exception:  # an operation without a fake implementation
            return _measure(module, example, count=True)


def _is_map(backbone: nn.Module, traced: TracedGraph, node: fx.Node, seen: Seen, example: Inputs, kind: Kind | None) -> bool:
    try:
        check_features(backbone, seen, node)
        layout = node_layout(backbone, traced, node, seen, example, kind)
    except (AttachError, UncuttableError):
        return False
    return math.prod(layout.size(seen.shapes[node.name])) > 1


def _from_other_inputs(traced: TracedGraph) -> set[fx.Node]:
    """Nodes that do not depend on the first input: padding masks in whatever form the layers take them; and the tokens."""
    free: set[fx.Node] = set(traced.inputs[1:])
    for node in traced.graph.nodes:
        if node.op != "placeholder" and all(parent in free for parent in node.all_input_nodes):
            free.add(node)
    return free


def _alone(traced: TracedGraph, seen: Seen, node: fx.Node, free: set[fx.Node]) -> bool:
    """Whether nothing but the node crosses there, forms of other inputs aside."""
    try:
        needed = crossing(traced, seen, traced.position(node))
    except UncuttableError:
        return False
    texts = {n for n in traced.inputs if len(seen.shapes[n.name]) == 2}  # small integers
    return {n for n in needed if n not in free | texts} == {node}
