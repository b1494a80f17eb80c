"""Where an exit can go: every place on the backbone's path at which one feature map alone crosses, with its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from exitlens.errors import AttachError, InputError
from exitlens.model.backbones.build import build_backbone, make_example
from exitlens.model.cutting.boundaries import UncuttableError, check_features, crossing, find_last_features, find_node_layout
from exitlens.model.cutting.graph import TracedGraph
from exitlens.model.cutting.looking import Seen, look, runnable
from exitlens.model.cutting.macs import disable_fused_kernels
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.model.cutting.node_timing import time_shares
from exitlens.model.cutting.trace import trace
from exitlens.model.input_spec import check_example
from exitlens.model.layouts import Kind
from exitlens.types.inputs import Inputs, list_tensors, map_inputs

By = Literal["cost", "time"]
BY: tuple[By, ...] = get_args(By)
RUNS = 3
SAME_TIME = 0.05


@dataclass(frozen=True)
class ExitPoint:
    """A place for an exit: after module ``name``.

    Attributes:
        name: what to write in ``at``.
        macs: multiply-accumulates of one image up to there. cost: as a fraction of the whole backbone's.
        shape: of the features there without the batch axis, for the example's size.
        time_share: measured share of the backbone's time up to there, in [0, 1], on a batch of a few samples.
    """

    name: str
    macs: int
    cost: float
    shape: tuple[int, ...]
    time_share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class _Counter(fx.Interpreter):
    """Runs a graph and keeps the multiply-accumulates of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs = dict[str, int]()

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n.name] = counter.get_total_flops() // 2
        return value


def exit_points(backbone: nn.Module | str, example: Inputs | None = None, *, runs: int = RUNS) -> list[ExitPoint]:
    """Lists the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens, and its padding mask) is all that the rest of the
    network needs: not in the middle of a residual block (``attach`` can cut there too, carrying what crosses). Where several
    names mean the same place, the shortest is given; modules that run more than once have no name for each time.

    Args:
        backbone: a module or a source such as ``"timm:resnet18"``.
        example: images ``(B,C,H,W)`` or tokens as :func:`~exitlens.model.attach.attach` takes them; the first sample is
            used. By default an image of 3x224x224, or a text of 64 tokens.
        runs: how often the time is measured at least (see ``time_shares``); with 0 it is not measured.

    Raises:
        AttachError: if the backbone cannot be traced, or fails on the example.
    """
    backbone = build_backbone(backbone, 1000) if isinstance(backbone, str) else backbone
    with preserve_state(backbone):
        return _points(backbone, _zeros(backbone) if example is None else example, runs)[0]


def _zeros(backbone: nn.Module) -> Inputs:
    """The default example, on the device of the backbone and, if it is an image, of its dtype."""
    like = next(backbone.parameters(), torch.zeros(()))
    return map_inputs(make_example(backbone), lambda t: t.to(like) if t.is_floating_point() else t.to(like.device))


def _points(
    backbone: nn.Module, example: Inputs, runs: int, kind: Kind | None = None
) -> tuple[list[ExitPoint], TracedGraph]:
    """The places of :func:`exit_points`, and the graph that they were found in."""
    check_example(example)
    example = map_inputs(example, lambda t: t[:1])
    traced = trace(backbone, False, example)
    seen = look(backbone, traced, example)
    order = list(traced.graph.nodes)
    end = traced.position(find_last_features(backbone, traced, seen))
    macs = _count(runnable(backbone, traced), example)
    masks = _from_other_inputs(traced)
    places = [
        node
        for node in order[:end]
        if traced.name_of(node)
        and _alone(traced, seen, node, masks)
        and _is_map(backbone, traced, node, seen, example, kind)
    ]
    shares = time_shares(backbone, traced, places, example, runs) if runs else [0.0] * len(places)
    total, up_to = max(sum(macs.values()), 1), dict(zip(order, accumulate(macs[n.name] for n in order), strict=True))
    points = [
        ExitPoint(str(traced.name_of(node)), up_to[node], up_to[node] / total, seen.shapes[node.name][1:], share)
        for node, share in zip(places, shares, strict=True)
    ]
    return points, traced


def place_exits(
    backbone: nn.Module, example: Inputs, count: int, layout: Kind | None = None, *, by: By = "cost"
) -> list[str]:
    """Names of ``count`` exit points that lie closest to equal shares: 1/(count+1), 2/(count+1) and so on.

    Args:
        backbone: a module. example: as in :func:`exit_points`.
        count: how many.
        layout: of the features, as in :func:`~exitlens.model.attach.attach`.
        by: shares of ``"cost"``, or of the ``"time"`` measured on this machine: where they are not the same (few
            multiply-accumulates on large maps), exits at equal cost do not save equal time.

    Raises:
        InputError: for a count below 1 or an unknown ``by``; AttachError: for more exits than there are places.
    """
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    check_by(by)
    points, traced = _points(backbone, example, RUNS if by == "time" else 0, layout)
    try:
        return choose_points(points, count, by)
    except AttachError as error:
        again = max(traced.repeated.items(), key=lambda item: item[1][0], default=None)
        if again is None:
            raise
        hint = f"{again[0]!r}, for one, runs {again[1][0]} times: no name says after which"
        raise AttachError(f"{error} ({hint})") from error


def choose_points(points: Sequence[ExitPoint], count: int, by: By = "cost") -> list[str]:
    """What :func:`place_exits` chooses among the places of a backbone.

    Raises:
        AttachError: for more exits than there are places.
    """
    points = [p for p, later in zip(points, [*points[1:], None], strict=True) if p.macs and not _same(p, later, by)]
    if len(points) < count:
        names = [p.name for p in points]
        raise AttachError(f"at: {count} early exits do not fit, this backbone has {len(points)} places for them: {names}")
    shares = [p.time_share if by == "time" else p.cost for p in points]
    chosen: list[int] = []
    for k in range(count):
        target = (k + 1) / (count + 1)
        first, last = (chosen[-1] + 1 if chosen else 0), len(points) - (count - k)
        chosen.append(min(range(first, last + 1), key=lambda i: abs(shares[i] - target)))
    return [points[i].name for i in chosen]


def _same(point: ExitPoint, later: ExitPoint | None, by: By) -> bool:
    """Whether the next place is taken instead, after normalisation and activation: it costs no more, or hardly more time."""
    if later is None or later.macs > point.macs:
        return False
    return by == "cost" or later.time_share - point.time_share < SAME_TIME


def check_by(by: str) -> None:
    """Raises :class:`InputError` for what exits cannot be placed by."""
    if by not in BY:
        raise InputError(f"by: expected 'cost' (multiply-accumulates) or 'time' (measured), got {by!r}")


def _count(module: fx.GraphModule, example: Inputs) -> dict[str, int]:
    """MACs by node, without computing if the operations allow it."""
    with disable_fused_kernels():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                return _macs(module, map_inputs(example, fake.from_tensor))
        except Exception:  # an operation without a fake implementation
            return _macs(module, example)


def _macs(module: fx.GraphModule, example: Inputs) -> dict[str, int]:
    counter = _Counter(module)
    with switch_mode(module, False), torch.no_grad():
        counter.run(*list_tensors(example))
    return counter.macs


def _is_map(backbone: nn.Module, traced: TracedGraph, node: fx.Node, seen: Seen, example: Inputs, kind: Kind | None) -> bool:
    try:
        check_features(backbone, seen, node)
        layout = find_node_layout(backbone, traced, node, seen, example, kind)
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
