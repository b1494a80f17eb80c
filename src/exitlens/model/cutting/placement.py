"""Where an exit can go: every place on the backbone's path at which one feature map alone crosses, with its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from exitlens.errors import AttachError, InputError
from exitlens.model.backbones.build import build_backbone, make_example
from exitlens.model.cutting.boundaries import check_cut, find_last_features
from exitlens.model.cutting.graph import TracedBackbone
from exitlens.model.cutting.macs import count_node_macs
from exitlens.model.cutting.modes import preserve_state
from exitlens.model.cutting.node_timing import time_shares
from exitlens.model.cutting.trace import trace
from exitlens.model.input_spec import check_example
from exitlens.model.layouts import Kind
from exitlens.types.inputs import Inputs, map_inputs

Placement = Literal["cost", "time"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
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


def exit_points(backbone: nn.Module | str, example: Inputs | None = None, *, runs: int = RUNS) -> list[ExitPoint]:
    """Lists the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens, and its padding mask) is all that the rest of the
    network needs: not in the middle of a residual block (``attach`` can cut there too, and passes on all that crosses).
    Where several names mean the same place, the shortest is given; a module that runs more than once is not listed.

    Args:
        backbone: a module or a source such as ``"timm:resnet18"``.
        example: images ``(B,C,H,W)`` or tokens as :func:`~exitlens.model.attach.attach` takes them; the first sample is
            used. By default an image of 3x224x224, or a text of 64 tokens.
        runs: how often the time is measured at least (see ``time_shares``); with 0 it is not measured.

    Raises:
        AttachError: if the backbone cannot be traced, or fails on the example.
    """
    backbone = build_backbone(backbone, 1000) if isinstance(backbone, str) else backbone
    if example is None:
        like = next(backbone.parameters(), torch.zeros(()))
        example = map_inputs(make_example(backbone), lambda t: t.to(like) if t.is_floating_point() else t.to(like.device))
    with preserve_state(backbone):
        return _list_points(_trace_first(backbone, example), runs)


def _trace_first(backbone: nn.Module, example: Inputs) -> TracedBackbone:
    """The backbone in evaluation mode, traced with the example's first sample."""
    check_example(example)
    return trace(backbone, False, map_inputs(example, lambda t: t[:1]))


def _list_points(traced: TracedBackbone, runs: int, kind: Kind | None = None) -> list[ExitPoint]:
    end = traced.position(find_last_features(traced))
    macs = count_node_macs(traced.runnable(), traced.example)
    ignored = _list_token_and_mask_nodes(traced)
    places = [node for node in traced.nodes[:end] if traced.name_of(node) and _can_hold_exit(traced, node, kind, ignored)]
    shares = time_shares(traced, places, runs) if runs else [0.0] * len(places)
    total, up_to = max(sum(macs.values()), 1), list(accumulate(macs[n] for n in traced.nodes))
    points = []
    for node, share in zip(places, shares, strict=True):
        so_far = up_to[traced.position(node)]
        points.append(ExitPoint(str(traced.name_of(node)), so_far, so_far / total, traced.shape_of(node)[1:], share))
    return points


def place_exits(
    backbone: nn.Module, example: Inputs, count: int, layout: Kind | None = None, *, placement: Placement = "cost"
) -> list[str]:
    """Names of ``count`` exit points that lie closest to equal shares: 1/(count+1), 2/(count+1) and so on.

    The shares are of ``"cost"``, or of the ``"time"`` measured on this machine: where they are not the same (few
    multiply-accumulates on large maps), exits at equal cost do not save equal time.

    Raises:
        InputError: for a count below 1 or an unknown ``placement``; AttachError: for more exits than there are places.
    """
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    check_placement(placement)
    traced = _trace_first(backbone, example)
    points = _list_points(traced, RUNS if placement == "time" else 0, layout)
    try:
        return choose_points(points, count, placement)
    except AttachError as error:
        again = max(traced.repeated.items(), key=lambda item: item[1][0], default=None)
        if again is None:
            raise
        hint = f"{again[0]!r}, for one, runs {again[1][0]} times: no name says after which"
        raise AttachError(f"{error} ({hint})") from error


def choose_points(points: Sequence[ExitPoint], count: int, placement: Placement = "cost") -> list[str]:
    """What :func:`place_exits` chooses among the places; raises :class:`AttachError` if there are too few."""
    followed = zip(points, [*points[1:], None], strict=True)
    points = [p for p, following in followed if p.macs and not _is_superseded(p, following, placement)]
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


def _is_superseded(point: ExitPoint, following: ExitPoint | None, placement: Placement) -> bool:
    """Whether the next place is better, after normalisation and activation: it costs no more, or hardly more time."""
    if following is None or following.macs > point.macs:
        return False
    return placement == "cost" or following.time_share - point.time_share < SAME_TIME


def check_placement(placement: str) -> None:
    """Raises :class:`InputError` for what exits cannot be placed by."""
    if placement not in PLACEMENTS:
        raise InputError(f"placement: expected 'cost' (multiply-accumulates) or 'time' (measured), got {placement!r}")


def _list_token_and_mask_nodes(traced: TracedBackbone) -> set[fx.Node]:
    """The tokens, and what depends on later inputs only: padding masks in whatever form the layers take them."""
    found = set(traced.inputs[1:])
    for node in traced.nodes:
        if node.op != "placeholder" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found | {node for node in traced.inputs if len(traced.shape_of(node)) == 2}


def _can_hold_exit(traced: TracedBackbone, node: fx.Node, kind: Kind | None, ignored: set[fx.Node]) -> bool:
    """Whether features with several locations are all that crosses there, tokens and masks (small integers) aside."""
    try:
        layout, crossing = check_cut(traced, node, kind)
    except AttachError:
        return False
    return math.prod(layout.size(traced.shape_of(node))) > 1 and set(crossing) - ignored == {node}
