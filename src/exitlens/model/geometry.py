"""Where every exit's map lies in the image, and how much of it a location sees, by following the backbone's graph.

The centre of a convolution is that of its squared weights, because trained kernels may lean to one side: those of
TensorFlow's EfficientNets lean against the padding, all of which lies behind, so that the maps are centred.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitlens.errors import ReachWarning
from exitlens.model._torch_compat import ADAPTIVE_POOLS, AVERAGE_POOL, CONVOLUTION, MAX_POOL, PADS, TRANSPOSED_CONVOLUTION
from exitlens.model.cutting.boundaries import call_on, find_input_locations, get_operation, has_channels_last, read_order
from exitlens.model.cutting.split import Features, Pieces
from exitlens.model.cutting.trace import TracedBackbone, get_callee_name
from exitlens.model.heads import DEPTH, KERNELS, ContextNeck, ExitHead, NeckHead

LEAST_OFFSET = 0.2  # in cells; less is not worth the blur, and random weights lean, too
LEAST_SHARE = 0.25  # share of the image's shorter side that a location has to see

_MIXING = (  # parts of the names of what mixes locations although it keeps the shape, or moves them
    *("softmax", "matmul", "bmm", "einsum", "attention", "attend", "tensordot", "linalg", "fft", "roll", "flip", "rot90"),
    *("cum", "sort", "topk", "gather", "scatter", "index", "unfold", "fold", "conv", "pool", "grid_sample", "shuffle"),
    *("lstm", "gru", "rnn", "transformer", "upsample", "interpolate", "transpose", "permute", "swap"),
)
_RESHAPING = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "unsafe_view")
_TAKING = ("getitem", "slice", "select", "narrow")
_STRIDE = 1000  # of locations, where an index is followed: more than the 1 that a new axis at the end gets
_DIVIDING = ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
_PADDING = ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
_LAYERS: dict[Any, str] = {  # that slide windows, by the function that does the same
    TRANSPOSED_CONVOLUTION: "conv_transpose",
    CONVOLUTION: "conv1",
    MAX_POOL: "max_pool",
    AVERAGE_POOL: "avg_pool",
    ADAPTIVE_POOLS: "adaptive_pool",
    nn.Upsample: "interpolate",
    PADS: "pad",
}
Shape = Sequence[int]


@dataclass(frozen=True)
class Spacing:
    """Where the locations along one axis lie, in pixels; the first pixel is centred at 0.5 (Araujo et al., Distill 2019)."""

    start: float = 0.5  # centre of location 0's receptive field
    jump: float = 1.0  # from one location to the next
    reach: float = 1.0  # length of a receptive field; math.inf if it is the whole image

    def slide(self, kernel: int, stride: int = 1, before: int = 0, dilation: int = 1, lean: float = 0.0) -> Spacing:
        """Slide a window of ``kernel`` locations with ``before`` of padding in front; it leans ``lean`` off its middle."""
        span = dilation * (kernel - 1)
        start = self.start + (span / 2 - before + lean) * self.jump
        return Spacing(start, self.jump * stride, self.reach + span * self.jump)

    def scatter(self, kernel: int, stride: int, before: int, dilation: int) -> Spacing:
        """Apply a transposed convolution."""
        span, jump = dilation * (kernel - 1), self.jump / stride
        return Spacing(self.start + (before - span / 2) * jump, jump, self.reach + math.floor(span / stride) * self.jump)

    def resize(self, old: int, new: int, *, aligned: bool = False, reads: int = 1) -> Spacing:
        """Interpolate from ``old`` to ``new`` locations, each from ``reads`` neighbours; ``aligned``: align_corners."""
        jump = self.jump * ((old - 1) / max(new - 1, 1) if aligned else old / new)
        is_first = reads == 1 and new < old  # the nearest neighbour is the first of several locations
        start = self.start if aligned or is_first else self.start + (jump - self.jump) / 2
        return Spacing(start, jump, self.reach + (reads - 1) * self.jump)

    def pool_to(self, old: int, new: int) -> Spacing:
        """Pool adaptively from ``old`` to ``new`` locations."""
        return self.resize(old, new, reads=math.ceil(old / new) + (old % new > 0))

    def skip(self, count: int, step: int = 1) -> Spacing:
        """Keep every ``step``-th location from ``count`` on."""
        return replace(self, start=self.start + count * self.jump, jump=self.jump * step)

    def middle(self, count: int) -> float:
        """Return the middle of ``count`` locations."""
        return self.start + self.jump * (count - 1) / 2


@dataclass(frozen=True)
class Grid:
    """Where the locations of a tensor lie; empty: every element may depend on the whole image, and has no place in it."""

    axes: tuple[int, ...] = ()  # the tensor's axes: one for each spacing, or one for them all, flattened
    spacings: tuple[Spacing, ...] = ()  # one for each axis of the image
    sizes: tuple[int, ...] = ()  # locations along each of these

    @property
    def is_flat(self) -> bool:
        """True if the locations along several axes of the image lie along one, perhaps behind class tokens."""
        return len(self.axes) == 1 < len(self.spacings)

    def move(self, axes: Iterable[int]) -> Grid:
        """Return the same locations along other axes of the tensor."""
        return replace(self, axes=tuple(axes))


NOWHERE = Grid()


def join(grids: Sequence[Grid]) -> Grid:
    """Return the mean place of locations that are combined; branches without a place only widen the reach of the others."""
    located = [g for g in grids if g.axes]
    if not located or any(g.axes != located[0].axes or len(g.spacings) != len(located[0].spacings) for g in located):
        return NOWHERE
    spacings = []
    for parallel in zip(*(g.spacings for g in located), strict=True):
        start, jump = (sum(values) / len(parallel) for values in zip(*((s.start, s.jump) for s in parallel), strict=True))
        ends = min(s.start - s.reach / 2 for s in parallel), max(s.start + s.reach / 2 for s in parallel)
        spacings.append(Spacing(start, jump, ends[1] - ends[0] if len(located) == len(grids) else math.inf))
    return replace(located[0], spacings=tuple(spacings), sizes=max(g.sizes for g in located))


def locate(traced: TracedBackbone, channels_last: bool = False) -> dict[fx.Node, Grid]:
    """Return the locations of every tensor computed from ``(B,C,*S)`` or ``(B,T,C)``: ``NOWHERE`` once they are mixed."""
    image = traced.inputs[0]
    first, sizes = (1, traced.shape_of(image)[1:-1]) if channels_last else (2, traced.shape_of(image)[2:])
    grids = {image: Grid(tuple(range(first, first + len(sizes))), tuple(Spacing() for _ in sizes), sizes)}
    for node in traced.nodes:
        if node in traced.values.shapes and node not in grids and (grid := _follow(traced, node, grids)) is not None:
            grids[node] = grid
    return grids


def _follow(traced: TracedBackbone, node: fx.Node, grids: dict[fx.Node, Grid]) -> Grid | None:
    """Follow one operation; ``None`` if it does not depend on the image."""
    maker = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    is_part = get_callee_name(node) == "getitem" and maker is not None and maker not in traced.values.shapes
    parents = [parent for parent in (maker if is_part and maker else node).all_input_nodes if parent in grids]
    if not parents:
        return None
    grid, before, after = grids[parents[0]], traced.shape_of(parents[0]), traced.shape_of(node)
    keeps_sizes = len(before) == len(after) and all(before[axis] == after[axis] for axis in grid.axes)
    if is_part and maker:  # one of several tensors: a part of the channels, or a result of an unknown operation
        return grid if get_callee_name(maker).split(".")[0] in _DIVIDING and keeps_sizes else NOWHERE
    if len(parents) > 1 or parents[0] is not maker:
        return _join_parents(traced, node, parents, grids)
    if not grid.axes:
        return NOWHERE
    module, name = traced.module_of(node), get_operation(node)
    if (rule := _find_window_rule(traced, node, before, after)) is not None:
        count, sizes = len(grid.spacings), tuple(after[-len(grid.spacings) :])
        is_all = math.prod(sizes) == 1 < math.prod(before[-count:])  # the window is the whole image
        if is_all or len(after) != len(before) or grid.axes != tuple(range(len(before) - count, len(before))):
            return NOWHERE
        return Grid(grid.axes, tuple(rule(i, spacing) for i, spacing in enumerate(grid.spacings)), sizes)
    if isinstance(module, nn.Linear) or name == "linear":
        return NOWHERE if len(before) - 1 in grid.axes else grid
    if isinstance(module, nn.Flatten | nn.Unflatten) or name in _RESHAPING:
        return _reshape(grid, before, after)
    if (order := read_order(node, len(before))) is not None:
        return grid.move(order.index(axis) for axis in grid.axes)
    if name in _TAKING:
        return _take(grid, node, before, after)
    is_mixing = _is_mixing(name if module is None else type(module).__name__.lower())
    return grid if keeps_sizes and not is_mixing else NOWHERE


def _is_mixing(name: str) -> bool:
    return any(word in name for word in _MIXING)


def _join_parents(traced: TracedBackbone, node: fx.Node, parents: list[fx.Node], grids: dict[fx.Node, Grid]) -> Grid:
    name = get_operation(node)
    if traced.module_of(node) is not None or _is_mixing(name) or name == "stack":
        return NOWHERE
    after = traced.shape_of(node)
    shapes = [(1,) * (len(after) - len(s)) + s for s in map(traced.shape_of, parents)]  # broadcasting aligns the last axes
    moves = [len(after) - len(traced.shape_of(parent)) for parent in parents]
    moved = [grids[parent].move(axis + by for axis in grids[parent].axes) for parent, by in zip(parents, moves, strict=True)]
    joined = join(moved)
    sizes = [] if joined.is_flat else zip(joined.axes, joined.sizes, strict=True)
    if min(moves) < 0 or any(after[axis] != size for axis, size in sizes):
        return NOWHERE  # side by side, or summed up
    if name in ("mul", "imul"):  # a gate that is the same at all locations (squeeze-excite) shows nothing of elsewhere
        gates = [not grid.axes and all(s[a] == 1 for a in joined.axes) for grid, s in zip(moved, shapes, strict=True)]
        joined = join([grid for grid, is_gate in zip(moved, gates, strict=True) if not is_gate])
    return joined


def _reshape(grid: Grid, before: Shape, after: Shape) -> Grid:
    """Follow axes of locations that stay, are flattened to one, or come back from one; told from the shapes."""
    first, count = grid.axes[0], len(grid.axes)
    if grid.axes != tuple(range(first, first + count)):
        return NOWHERE
    extents, whole = tuple(before[first : first + count]), math.prod(before[:first])
    for place in range(len(after) + 1):
        if math.prod(after[:place]) != whole:
            continue
        for wanted in (extents, grid.sizes):
            if tuple(after[place : place + len(wanted)]) == wanted and math.prod(wanted) == math.prod(extents):
                return grid.move(range(place, place + len(wanted)))
        if after[place : place + 1] == (math.prod(extents),):
            return grid.move((place,))
    return NOWHERE


def _take(grid: Grid, node: fx.Node, before: Shape, after: Shape) -> Grid:
    """Follow indexing, by what it does to strides; a single location has no place worth following."""
    axes, spacings, index = [], [], node.args[1] if len(node.args) > 1 else ()
    if any(isinstance(item, list) for item in (index if isinstance(index, tuple) else (index,))):
        return NOWHERE
    for axis, spacing in zip(grid.axes, grid.spacings, strict=False):  # flat locations lie along one axis
        strides = [_STRIDE * (other == axis) for other in range(len(before))]
        try:
            taken = call_on(node, torch.empty_strided(tuple(before), strides, device="meta"))
        except (IndexError, RuntimeError, TypeError):  # an index or a length is computed
            return NOWHERE
        steps = [(stride, -target) for target, stride in enumerate(taken.stride()) if stride >= _STRIDE]  # new axes: more
        is_known = taken.ndim == len(after) and all(n >= size for n, size in zip(taken.shape, after, strict=True))
        if not steps or not is_known or (grid.is_flat and min(steps)[0] > _STRIDE):
            return NOWHERE
        axes.append(-min(steps)[1])
        spacings.append(spacing.skip(taken.storage_offset() // _STRIDE, min(steps)[0] // _STRIDE))
    return grid.move(axes) if grid.is_flat else Grid(tuple(axes), tuple(spacings), tuple(after[axis] for axis in axes))


WindowRule = Callable[[int, Spacing], Spacing]  # what a window makes of the spacing along the i-th axis of locations


def _find_window_rule(traced: TracedBackbone, node: fx.Node, before: Shape, after: Shape) -> WindowRule | None:
    """Return what a layer or function makes of a spacing; ``None`` if it slides no window, or an unknown one."""
    module, name = traced.module_of(node), get_operation(node)
    if module is not None:
        name = next((word for kinds, word in _LAYERS.items() if isinstance(module, kinds)), "")

    def read(place: int, word: str, default: Any = None) -> Any:  # an attribute of the layer, or argument of the call
        value = node.args[place] if len(node.args) > place and module is None else node.kwargs.get(word)
        value = getattr(module, word, None) if module is not None else value
        return default if value is None or value == [] else value

    if name.startswith("adaptive_"):
        return lambda i, spacing: spacing.pool_to(before[2 + i], after[2 + i])
    if name == "interpolate" or name.startswith("upsample_"):
        aligned = bool(read(len(node.args), "align_corners", next((a for a in node.args if isinstance(a, bool)), False)))
        reads = 1 if "nearest" in (str(read(3, "mode", "nearest")) if name == "interpolate" else name) else 2
        return lambda i, spacing: spacing.resize(before[2 + i], after[2 + i], aligned=aligned, reads=reads)
    if name in _PADDING:  # two numbers for each of the last axes, the last first
        pairs = read(1, "pad" if module is None else "padding")
        if not isinstance(pairs, list | tuple) or not all(isinstance(side, int) for side in pairs):
            return None
        in_front = [*pairs[::2], *(0,) * len(before)]
        return lambda i, spacing: spacing.skip(-in_front[len(before) - 3 - i])
    weight, transposed = None, name.startswith("conv_t")
    if name.startswith(("max_pool", "avg_pool")):
        kernel, dilation = read(1, "kernel_size"), read(4, "dilation", 1) if name.startswith("max") else 1
        parts = (kernel, read(2, "stride", kernel), read(3, "padding", 0), dilation)
    elif name.startswith(("conv1", "conv2", "conv3", "conv_t")) and (module is not None or len(node.all_input_nodes) > 1):
        source = None if module is not None else node.all_input_nodes[1]
        kernel = read(0, "kernel_size") if source is None else traced.shape_of(source)[2:]
        parts = (kernel, read(3, "stride", 1), read(4, "padding", 0), read(7 if transposed else 5, "dilation", 1))
        if source is None or source.op == "get_attr":
            weight = getattr(module, "weight", None) if source is None else traced.find_member(str(source.target))
    else:
        return None
    window: Any = [_spread(part, len(after) - 2) for part in parts]
    if None in window:
        return None
    if transposed:
        return lambda i, spacing: spacing.scatter(*(part[i] for part in window))
    return lambda i, spacing: _slide(spacing, i, [part[i] for part in window], weight)


def _spread(value: Any, count: int) -> list[int | str] | None:
    """Return a value for each axis of locations from one for all or for each; ``None`` if the network computes it."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return (values * count)[:count] if all(isinstance(v, int | str) for v in values) else None


def _slide(spacing: Spacing, i: int, window: Sequence[Any], weight: Tensor | None) -> Spacing:
    size, stride, before, spaced = window
    if isinstance(before, str):  # the odd location of padding goes behind
        before = spaced * (size - 1) // 2 if before == "same" else 0
    lean = 0.0
    if weight is not None:  # the centre of the squared weights, off the middle
        squares = weight.detach().double().square().movedim(2 + i, 0).flatten(1).sum(1).cpu()
        places = torch.arange(len(squares), dtype=torch.float64) - (len(squares) - 1) / 2
        lean = spaced * (squares @ places / squares.sum().clamp_min(1e-300)).item()
    return spacing.slide(size, stride, before, spaced, lean)


@dataclass(frozen=True)
class MapGeometry:
    """One exit's map along each axis of the image; offsets are in cells, 0 if less than a fifth of a cell."""

    offset: tuple[float, ...]  # the map's
    feature_offset: tuple[float, ...]  # that of the features, which a neck may have brought to another grid
    reach: tuple[float, ...]  # the pixels that a location of the map sees


def find_map_geometry(pieces: Pieces, heads: Sequence[ExitHead]) -> list[MapGeometry]:
    """Return the geometry of every exit's map for the example's size; empty for sequences."""
    image = find_input_locations(pieces.traced)
    if not image:
        return []
    grids, geometry = locate(pieces.traced, has_channels_last(pieces.traced)), []
    for k, head in enumerate(heads):
        features = _find_feature_grid(grids, pieces.features[k])
        grid = _find_map_grid(pieces, features, head, grids)
        reach = [min(s.reach, float(n)) for s, n in zip(grid.spacings, image, strict=True)] if grid.axes else image
        geometry.append(MapGeometry(_find_offset(grid, image), _find_offset(features, image), tuple(map(float, reach))))
    return geometry


def _find_offset(grid: Grid, image: Shape) -> tuple[float, ...]:
    if not grid.axes:
        return (0.0,) * len(image)
    sides = zip(grid.spacings, grid.sizes, image, strict=True)
    offsets = [round((spacing.middle(n) - pixels / 2) * n / pixels, 6) for spacing, n, pixels in sides]
    return tuple(offset if abs(offset) >= LEAST_OFFSET else 0.0 for offset in offsets)


def _find_map_grid(pieces: Pieces, features: Grid, head: ExitHead, grids: dict[fx.Node, Grid]) -> Grid:
    """Return the grid of the head's map: that of its features, or what its neck makes of them."""
    neck = head.neck if isinstance(head, NeckHead) else None
    if not isinstance(neck, ContextNeck):
        return features
    shrunk = tuple(spacing.slide(neck.shrink, neck.shrink) for spacing in features.spacings)
    grid = Grid(features.axes, shrunk, tuple(n // neck.shrink for n in features.sizes))
    if neck.lateral is not None and (lateral := pieces.lateral) is not None:
        beside = _find_feature_grid(grids, lateral)
        sides = zip(grid.spacings, grid.sizes, lateral.size, strict=False)
        enlarged = tuple(spacing.resize(old, new, reads=1 if old == new else 2) for spacing, old, new in sides)
        grid = join([Grid(grid.axes, enlarged, lateral.size if enlarged else ()), beside])
    for _ in range(DEPTH):  # what the neck's depthwise convolutions see
        side = KERNELS.get(len(grid.spacings), 1)
        grid = replace(grid, spacings=tuple(spacing.slide(side, before=side // 2) for spacing in grid.spacings))
    return grid


def _find_feature_grid(grids: dict[fx.Node, Grid], features: Features) -> Grid:
    """Return the grid of features with the axes of their canonical form; none if it does not fit their layout."""
    grid, kind, size = grids.get(features.node, NOWHERE), features.layout.kind, features.size
    first, canonical = 2 if kind == "nchw" else 1, range(2, 2 + len(size))
    expected = {"tokens": (1,), "vector": ()}.get(kind, tuple(range(first, first + len(size))))
    return grid.move(canonical) if grid.axes == expected and grid.sizes == size else NOWHERE


def warn_of_small_reach(geometry: Sequence[MapGeometry], names: Sequence[str], image: Shape, head: str) -> None:
    """Warn of early exits whose locations see too little of an image ``(H,W)`` to carry an answer."""
    if len(image) != 2:
        return
    for k, (name, seen) in enumerate(zip(names, geometry, strict=False)):
        if (reach := min(seen.reach)) < LEAST_SHARE * min(image):
            fix = "put it later" if head == "context" else "put it later, or attach with head='context'"
            sees = f"sees {math.ceil(reach)} pixels at each location, of an image of {image[0]}x{image[1]}"
            warnings.warn(f"at: exit {k} after {name!r} {sees}: that is little to answer by. Fix: {fix}", ReachWarning, 3)
