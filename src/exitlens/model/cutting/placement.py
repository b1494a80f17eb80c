"""Where an exit can go: every place on the backbone's path at which one feature map alone crosses, with its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, zip_longest
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from exitlens.errors import AttachError, InputError
from exitlens.model.backbones.build import build_backbone, make_example
from exitlens.model.cutting import cost
from exitlens.model.cutting.boundaries import find_cut_nodes, find_exit_nodes
from exitlens.model.cutting.cost import NodeTimer, count_node_macs
from exitlens.model.cutting.graph import TracedBackbone
from exitlens.model.cutting.modes import preserve_state
from exitlens.model.cutting.trace import trace
from exitlens.model.info import check_example
from exitlens.model.layouts import Kind
from exitlens.types.inputs import Inputs, map_inputs

Placement = Literal["cost", "time"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
RUNS = 3
SAME_TIME = 0.05
TIE = 0.02  # of the backbone's time: places whose distances from an exit's share differ by less are equally good


@dataclass(frozen=True)
class ExitCandidate:
    """A place for an exit: after module ``name``.

    Attributes:
        name: the name to pass in ``at``.
        macs: multiply-accumulates of one image up to there.
        cost: the same as a fraction of the whole backbone's.
        shape: the features' shape for the example's size, without the batch axis.
        time_share: the measured share of the backbone's time up to there, in [0, 1].

    Examples:
        >>> point = xl.list_exit_candidates("small", images[:1], runs=1)[0]
        >>> point.name, point.shape, 0 < point.cost < 1
        ('stem.0', (32, 20, 20), True)
    """

    name: str
    macs: int
    cost: float
    shape: tuple[int, ...]
    time_share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def list_exit_candidates(
    backbone: nn.Module | str, example: Inputs | None = None, *, runs: int = RUNS
) -> list[ExitCandidate]:
    """List the places where an exit can go, in the order of execution.

    A place is listed where one feature map (or one sequence of tokens, and its padding mask) is all that the rest of the
    network needs, so not in the middle of a residual block, where ``attach`` can cut too. Where several names mean the same
    place, the shortest is given; a module that runs more than once is not listed.

    Args:
        backbone: a module or a source such as ``"timm:resnet18"``.
        example: inputs as :func:`~exitlens.model.attach.attach` takes them, of which the first sample is used; by default an
            image of 3x224x224, or a text of 64 tokens.
        runs: the least number of timed runs, which take about 1.5 s; with 0 no time is measured.

    Raises:
        AttachError: if the backbone cannot be traced, or fails on the example.

    Examples:
        >>> [point.name for point in xl.list_exit_candidates("small", images[:1], runs=1)][2:5]
        ['stem', 'layer1', 'layer2']
    """
    backbone = build_backbone(backbone, 1000) if isinstance(backbone, str) else backbone
    if example is None:
        like = next(backbone.parameters(), torch.zeros(()))
        example = map_inputs(make_example(backbone), lambda t: t.to(like) if t.is_floating_point() else t.to(like.device))
    with preserve_state(backbone):
        traced = _trace_first(backbone, example)
        places = find_exit_nodes(traced)
        shares = [0.0] * len(places)
        if runs:
            with NodeTimer(traced, places) as timer:
                timer.run(runs, cost.SECONDS)
                shares = timer.shares()
        return _describe_places(traced, places, shares)


def check_places(backbone: nn.Module, at: Sequence[str], example: Inputs) -> None:
    """Raise :class:`AttachError` if the backbone lacks a module of one of these names: quick, before weights are loaded."""
    known = dict(backbone.named_modules())
    if not all(name in known for name in at):
        with preserve_state(backbone):
            find_cut_nodes(_trace_first(backbone, example), at)


def _trace_first(backbone: nn.Module, example: Inputs) -> TracedBackbone:
    """Trace the backbone in evaluation mode with the example's first sample."""
    check_example(example)
    return trace(backbone, False, map_inputs(example, lambda t: t[:1]))


def _describe_places(traced: TracedBackbone, places: Sequence[fx.Node], shares: Sequence[float]) -> list[ExitCandidate]:
    macs = count_node_macs(traced)
    total, up_to = max(sum(macs.values()), 1), list(accumulate(macs[n] for n in traced.nodes))
    reached = [(node, up_to[traced.position(node)], share) for node, share in zip(places, shares, strict=True)]
    return [ExitCandidate(str(traced.name_of(n)), mac, mac / total, traced.shape_of(n)[1:], s) for n, mac, s in reached]


def place_exits(
    backbone: nn.Module, example: Inputs, count: int, layout: Kind | None = None, *, placement: Placement = "cost"
) -> list[str]:
    """Return the names of ``count`` exit points that lie closest to equal shares: 1/(count+1), 2/(count+1) and so on.

    The shares are of ``"cost"``, or of the ``"time"`` measured on this machine. They differ where few multiply-accumulates
    work on large maps: exits at equal cost do not save equal time there.
    """
    if count < 1:
        raise InputError(f"at: expected a positive number of early exits, got {count}")
    check_placement(placement)
    traced = _trace_first(backbone, example)
    places = find_exit_nodes(traced, layout)
    points = _describe_places(traced, places, [0.0] * len(places))
    try:
        if placement == "cost":
            return choose_points(points, count)
        with NodeTimer(traced, places) as timer:
            return choose_by_time(points, count, timer)
    except AttachError as error:
        if not traced.repeated:
            raise
        name, (times, _) = max(traced.repeated.items(), key=lambda item: item[1][0])
        raise AttachError(f"{error} ({name!r}, for example, runs {times} times: no name says after which)") from error


def choose_by_time(points: Sequence[ExitCandidate], count: int, timer: NodeTimer) -> list[str]:
    """Choose as :func:`choose_points` does by the times of all runs, once each half of the runs chooses so by itself.

    The halves may choose different places whose distances from an exit's share differ by less than ``TIE``. A machine on
    which they do not agree before ``MOST_SECONDS`` have passed is refused by an :class:`AttachError`.
    """
    choose_points(points, count, "time")  # raises if they do not fit
    while True:
        timer.run(2 * RUNS, cost.SECONDS)
        shares = [timer.shares(half) for half in (None, 0, 1)]
        timed = [[replace(p, time_share=s) for p, s in zip(points, half, strict=True)] for half in shares]
        chosen, *halves = (choose_points(places, count, "time") for places in timed)
        share_of = {p.name: p.time_share for p in timed[0]}
        gaps = [[abs(share_of[name] - (k + 1) / (count + 1)) for k, name in enumerate(names)] for names in (chosen, *halves)]
        if all(abs(a - b) < TIE for half in gaps[1:] for a, b in zip(gaps[0], half, strict=True)):
            return chosen
        if timer.seconds >= cost.MOST_SECONDS:
            raise AttachError(
                f"placement: the machine is too busy to place exits by time: halves of {timer.done} runs chose {halves[0]} "
                f"and {halves[1]}. Fix: try again with nothing else running, name places (at={chosen}), or take "
                "placement='cost'"
            )


def choose_points(points: Sequence[ExitCandidate], count: int, placement: Placement = "cost") -> list[str]:
    """Choose ``count`` of the places by their shares.

    It leaves out places without cost, and places before normalisation and activation, after which the next place costs no
    more, or hardly more time.
    """

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


def check_placement(placement: str) -> None:
    """Raise :class:`InputError` if exits cannot be placed by this."""
    if placement not in PLACEMENTS:
        raise InputError(f"placement: expected 'cost' (multiply-accumulates) or 'time' (measured), got {placement!r}")
