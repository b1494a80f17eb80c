"""Following the locations of the image through the graph of a backbone, one operation after the other."""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn

from exitlens.model.cutting.graph import TracedBackbone, get_callee_name
from exitlens.model.geometry.grids import NOWHERE, Grid, Line, join
from exitlens.model.geometry.shapes import permute, reshape, take
from exitlens.model.geometry.windows import find_window_rule

_MIXING = (  # parts of the names of what mixes locations although it keeps the shape, or moves them
    *("softmax", "matmul", "bmm", "einsum", "attention", "attend", "tensordot", "linalg", "fft", "roll", "flip", "rot90"),
    *("cum", "sort", "topk", "gather", "scatter", "index", "unfold", "fold", "conv", "pool", "grid_sample", "shuffle"),
    *("lstm", "gru", "rnn", "transformer", "upsample", "interpolate"),
)
_PERMUTING = ("permute", "transpose", "swapaxes", "swapdims", "t")
_RESHAPING = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "unsafe_view")
_TAKING = ("getitem", "slice", "select", "narrow")
_DIVIDING = ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
_MULTIPLYING = ("mul", "imul")


def locate(traced: TracedBackbone, channels_last: bool = False) -> dict[fx.Node, Grid]:
    """Where the locations of every tensor lie that is computed from the image ``(B,C,*S)``, or a series ``(B,T,C)``.

    Convolutions, pooling, padding, resizing, slices and changes of layout are followed exactly; what works location by
    location keeps the place. Whatever mixes all locations (attention, linear layers over locations) has none:
    :data:`~exitlens.model.geometry.grids.NOWHERE`. So has what is not known here, and changes the shape.
    """
    image = traced.inputs[0]
    first, sizes = (1, traced.shape_of(image)[1:-1]) if channels_last else (2, traced.shape_of(image)[2:])
    found = {image: Grid(tuple(range(first, first + len(sizes))), tuple(Line() for _ in sizes), sizes)}
    for node in traced.nodes:
        if node in traced.values.shapes and node not in found:
            grid = _follow(traced, node, found)
            if grid is not None:
                found[node] = grid
    return found


def _follow(traced: TracedBackbone, node: fx.Node, found: dict[fx.Node, Grid]) -> Grid | None:
    """One operation; ``None`` if it does not depend on the image."""
    maker = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if get_callee_name(node) == "getitem" and maker is not None and maker not in traced.values.shapes:
        return _follow_part(traced, node, maker, found)
    parents = [parent for parent in node.all_input_nodes if parent in found]
    if not parents:
        return None
    name = get_callee_name(node).split(".")[0].strip("_")
    if len(parents) > 1 or parents[0] is not maker:
        return _join_parents(traced, node, name, parents, found)
    grid, before, after = found[parents[0]], traced.shape_of(parents[0]), traced.shape_of(node)
    return _apply(traced, node, name, grid, before, after) if grid.axes else NOWHERE


def _follow_part(traced: TracedBackbone, node: fx.Node, maker: fx.Node, found: dict[fx.Node, Grid]) -> Grid | None:
    """One of several tensors that ``maker`` returns: a part of the channels, or a result of what is not known here."""
    parents = [parent for parent in maker.all_input_nodes if parent in found]
    if not parents:
        return None
    grid, before, after = found[parents[0]], traced.shape_of(parents[0]), traced.shape_of(node)
    is_part = get_callee_name(maker).split(".")[0] in _DIVIDING and len(before) == len(after)
    return grid if is_part and all(before[axis] == after[axis] for axis in grid.axes) else NOWHERE


def _join_parents(
    traced: TracedBackbone, node: fx.Node, name: str, parents: list[fx.Node], found: dict[fx.Node, Grid]
) -> Grid:
    if traced.module_of(node) is not None or _is_mixing(name) or name == "stack":
        return NOWHERE
    after = traced.shape_of(node)
    shapes = [(1,) * (len(after) - len(s)) + s for s in map(traced.shape_of, parents)]  # broadcasting aligns the last axes
    moves = [len(after) - len(traced.shape_of(parent)) for parent in parents]
    grids = [found[parent].move(axis + by for axis in found[parent].axes) for parent, by in zip(parents, moves, strict=True)]
    joined = join(grids)
    sizes = [] if joined.is_flat else zip(joined.axes, joined.sizes, strict=True)
    if min(moves) < 0 or any(after[axis] != size for axis, size in sizes):
        return NOWHERE  # side by side, or summed up
    if name in _MULTIPLYING:  # a gate that is the same at all locations (squeeze-excite) shows nothing of elsewhere
        gates = [not grid.axes and all(s[a] == 1 for a in joined.axes) for grid, s in zip(grids, shapes, strict=True)]
        joined = join([grid for grid, is_gate in zip(grids, gates, strict=True) if not is_gate])
    return joined


def _apply(
    traced: TracedBackbone, node: fx.Node, name: str, grid: Grid, before: tuple[int, ...], after: tuple[int, ...]
) -> Grid:
    """An operation on one tensor whose locations have a place."""
    module = traced.module_of(node)
    kind = name if module is None else type(module).__name__.lower()
    window = find_window_rule(module, node, name, before, after, traced.shape_of, traced.constant_of)
    if window is not None:
        return _slide(grid, window, before, after)
    if isinstance(module, nn.Linear) or name == "linear":
        return NOWHERE if len(before) - 1 in grid.axes else grid
    if isinstance(module, nn.Flatten | nn.Unflatten) or name in _RESHAPING:
        return reshape(grid, before, after)
    if name in _PERMUTING:
        return permute(grid, node, name, len(before))
    if name in _TAKING:
        return take(grid, node, name, before)
    if _is_mixing(kind):
        return NOWHERE
    same = len(before) == len(after) and all(before[axis] == after[axis] for axis in grid.axes)
    return grid if same else NOWHERE


def _is_mixing(name: str) -> bool:
    return any(word in name for word in _MIXING)


def _slide(grid: Grid, window: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Grid:
    """Windows slide over the last axes, and the locations have to lie along these, in order."""
    count = len(grid.lines)
    if grid.axes != tuple(range(len(before) - count, len(before))) or len(after) != len(before):
        return NOWHERE
    sizes = after[-count:]
    if math.prod(sizes) == 1 < math.prod(before[-count:]):
        return NOWHERE  # all of the image
    return Grid(grid.axes, tuple(window(i, line) for i, line in enumerate(grid.lines)), sizes)
