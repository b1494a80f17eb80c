"""Where every exit's map lies in the image, and how much of the image its locations see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from exitlens.errors import ReachWarning
from exitlens.model.cutting.boundaries import find_input_locations, has_channels_last
from exitlens.model.cutting.graph import TracedBackbone, get_callee_name
from exitlens.model.cutting.split import Pieces
from exitlens.model.heads.exit_heads import EvidenceHead, ExitHead
from exitlens.model.heads.necks import DEPTH, ContextNeck, find_kernel
from exitlens.model.layouts import Layout


@dataclass(frozen=True)
class Line:
    """Where the locations along one axis lie, in pixels; the first pixel is centred at 0.5.

    Attributes:
        start: centre of location 0's receptive field.
        jump: from one location to the next.
        reach: length of a receptive field; ``math.inf`` where it is the whole image.

    The arithmetic is that of Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
    """

    start: float = 0.5
    jump: float = 1.0
    reach: float = 1.0

    def slide(self, kernel: int, stride: int = 1, before: int = 0, dilation: int = 1, lean: float = 0.0) -> Line:
        """After a window of ``kernel`` locations, with ``before`` of padding in front; it leans ``lean`` off its middle."""
        span = dilation * (kernel - 1)
        start = self.start + (span / 2 - before + lean) * self.jump
        return Line(start, self.jump * stride, self.reach + span * self.jump)

    def scatter(self, kernel: int, stride: int, before: int, dilation: int) -> Line:
        """After a transposed convolution."""
        span, jump = dilation * (kernel - 1), self.jump / stride
        return Line(self.start + (before - span / 2) * jump, jump, self.reach + math.floor(span / stride) * self.jump)

    def resize(self, old: int, new: int, *, aligned: bool = False, reads: int = 1) -> Line:
        """After interpolation from ``old`` to ``new`` locations, each from ``reads`` neighbours.

        ``aligned``: by the centres of the corner locations (``align_corners=True``) instead of by their edges. Fewer
        locations of one neighbour each (``nearest``) are the first of those that they stand for.
        """
        jump = self.jump * ((old - 1) / max(new - 1, 1) if aligned else old / new)
        start = self.start if aligned or (reads == 1 and new < old) else self.start + (jump - self.jump) / 2
        return Line(start, jump, self.reach + (reads - 1) * self.jump)

    def pool_to(self, old: int, new: int) -> Line:
        """After adaptive pooling from ``old`` to ``new`` locations."""
        return self.resize(old, new, reads=math.ceil(old / new) + (old % new > 0))

    def skip(self, count: int, step: int = 1) -> Line:
        """From location ``count`` on, every ``step``-th."""
        return replace(self, start=self.start + count * self.jump, jump=self.jump * step)

    def see_all(self) -> Line:
        """What is added comes from the whole image."""
        return replace(self, reach=math.inf)

    def middle(self, count: int) -> float:
        """Where ``count`` locations have their middle."""
        return self.start + self.jump * (count - 1) / 2


@dataclass(frozen=True)
class Grid:
    """Where the locations of a tensor lie.

    Attributes:
        axes: the tensor's axes along which its locations lie: one for each line, or one for them all, flattened. None:
            every element may depend on the whole image, and has no place in it.
        lines: one for each axis of the image.
        sizes: locations along each line.
    """

    axes: tuple[int, ...] = ()
    lines: tuple[Line, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def is_flat(self) -> bool:
        """Whether the locations of several lines lie along one axis, perhaps behind class tokens."""
        return len(self.axes) == 1 < len(self.lines)

    def move(self, axes: Iterable[int]) -> Grid:
        """The same locations along other axes of the tensor."""
        return replace(self, axes=tuple(axes))

    def see_all(self) -> Grid:
        """What is added at every location comes from the whole image."""
        return replace(self, lines=tuple(line.see_all() for line in self.lines))


NOWHERE = Grid()


def join(grids: Sequence[Grid]) -> Grid:
    """What is added, multiplied or concatenated: the mean of their places, and all that they reach.

    All branches weigh the same. Those without a place do not move the others, whose reach becomes the whole image.
    """
    located = [grid for grid in grids if grid.axes]
    if not located or any(grid.axes != located[0].axes or len(grid.lines) != len(located[0].lines) for grid in located):
        return NOWHERE
    lines = tuple(_average(parallel) for parallel in zip(*(grid.lines for grid in located), strict=True))
    joined = replace(located[0], lines=lines, sizes=max(grid.sizes for grid in located))
    return joined if len(located) == len(grids) else joined.see_all()


def _average(lines: Sequence[Line]) -> Line:
    start, jump = sum(line.start for line in lines) / len(lines), sum(line.jump for line in lines) / len(lines)
    first, last = min(line.start - line.reach / 2 for line in lines), max(line.start + line.reach / 2 for line in lines)
    return Line(start, jump, last - first)


def reshape(grid: Grid, before: Sequence[int], after: Sequence[int]) -> Grid:
    """Axes of locations that stay, are flattened to one, or come back from one; told from the shapes."""
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


def permute(grid: Grid, node: fx.Node, name: str, ndim: int) -> Grid:
    """Axes in another order."""
    given = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    given = [*given[0]] if given and isinstance(given[0], list | tuple) else given
    chosen = [axis % ndim for axis in given if isinstance(axis, int)] if given else [0, 1]
    if len(chosen) != (ndim if name == "permute" else 2):
        return NOWHERE
    order = list(range(ndim))
    if name == "permute":
        order = chosen
    else:
        order[chosen[0]], order[chosen[1]] = chosen[1], chosen[0]
    return grid.move(order.index(axis) for axis in grid.axes)


def take(grid: Grid, node: fx.Node, name: str, before: Sequence[int]) -> Grid:
    """A slice of the locations, or an element of another axis; one location alone has no place worth following."""
    if name == "getitem":
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    else:
        axis, *rest = (*node.args[1:], *(None,) * 4)
        if not isinstance(axis, int):
            return NOWHERE
        first, end, step = rest[:3]
        one: Any = first if name == "select" else slice(first, None if name == "narrow" else end, step)
        items = (*(slice(None),) * (axis % len(before)), one)
    return _take_items(grid, items, before)


def _take_items(grid: Grid, items: tuple[Any, ...], before: Sequence[int]) -> Grid:
    if any(not isinstance(item, int | slice | type(None) | type(...)) for item in items):
        return NOWHERE
    if Ellipsis in items:
        place = items.index(Ellipsis)
        left = len(before) - sum(item is not None for item in items) + 1
        items = (*items[:place], *(slice(None),) * left, *items[place + 1 :])
    items = (*items, *(slice(None),) * (len(before) - sum(item is not None for item in items)))
    axes, lines, sizes = list(grid.axes), list(grid.lines), list(grid.sizes)
    source = target = 0  # axes before and after
    for item in items:
        if item is None:
            target += 1
            continue
        if source in grid.axes:
            i = grid.axes.index(source)
            if not isinstance(item, slice) or any(isinstance(n, fx.Node) for n in (item.start, item.step)):
                return NOWHERE
            axes[i] = target
            if not grid.is_flat:
                first, _, step = slice(item.start, None, item.step).indices(before[source])
                lines[i] = lines[i].skip(first, step)
                sizes[i] = -(-(sizes[i] - first) // step)
            elif item.step not in (None, 1):
                return NOWHERE
        source += 1
        target += isinstance(item, slice)
    return replace(grid, axes=tuple(axes), lines=tuple(lines), sizes=tuple(sizes))


Rule = Callable[[int, Line], Line]  # of the i-th of the locations' axes
Shape = Sequence[int]


def find_window_rule(
    module: nn.Module | None,
    node: fx.Node,
    name: str,
    before: Shape,
    after: Shape,
    shape_of: Callable[[fx.Node], Shape],
    value_of: Callable[[fx.Node], Any],
) -> Rule | None:
    """What the operation makes of a line of locations; ``None`` if it slides no window, or one that is not known here.

    Args:
        module: that the node calls, if it calls one. name: of the function, if not.
        before, after: shapes of what comes in and goes out.
        shape_of: of other nodes (weights). value_of: of those that are constant, else ``None``.
    """
    if module is not None:
        return _of_module(module, before, after)
    if name.startswith(("adaptive_avg_pool", "adaptive_max_pool")):
        return _resizing(before, after, Line.pool_to)
    if name == "interpolate" or name.startswith("upsample_"):
        aligned = node.kwargs.get("align_corners", next((a for a in node.args if isinstance(a, bool)), False))
        mode = str(_argument(node, 3, "mode") or "nearest") if name == "interpolate" else name
        return _resizing(before, after, partial(Line.resize, aligned=bool(aligned), reads=1 if "nearest" in mode else 2))
    if name in ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"):
        return _padding(_argument(node, 1, "pad"), len(before) - 2)
    if name.startswith(("conv1", "conv2", "conv3", "conv_transpose")) and len(node.all_input_nodes) > 1:
        is_transposed = name.startswith("conv_t")
        kernel = shape_of(node.all_input_nodes[1])[2:]
        stride, padding = _argument(node, 3, "stride"), _argument(node, 4, "padding")
        dilation = _argument(node, 7 if is_transposed else 5, "dilation")
        if is_transposed:
            return _scattering(kernel, stride or 1, padding or 0, dilation or 1)
        return _sliding(kernel, stride or 1, padding or 0, dilation or 1, value_of(node.all_input_nodes[1]))
    if name.startswith(("max_pool", "avg_pool")):
        kernel, stride = _argument(node, 1, "kernel_size"), _argument(node, 2, "stride")
        dilation = _argument(node, 4, "dilation") if name.startswith("max") else 1
        return _sliding(kernel, stride or kernel, _argument(node, 3, "padding") or 0, dilation or 1)
    return None


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _of_module(module: nn.Module, before: Shape, after: Shape) -> Rule | None:
    if isinstance(module, _ConvTransposeNd):
        return _scattering(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, _ConvNd):
        return _sliding(module.kernel_size, module.stride, module.padding, module.dilation, module.weight)
    if isinstance(module, _MaxPoolNd | _AvgPoolNd):
        stride = module.kernel_size if module.stride is None else module.stride
        return _sliding(module.kernel_size, stride, module.padding, getattr(module, "dilation", 1))
    if isinstance(module, _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd):
        return _resizing(before, after, Line.pool_to)
    if isinstance(module, nn.Upsample):
        reads = 1 if module.mode == "nearest" else 2
        return _resizing(before, after, partial(Line.resize, aligned=bool(module.align_corners), reads=reads))
    if type(module).__module__ == nn.ZeroPad2d.__module__:
        return _padding(module.padding, len(before) - 2)
    return None


def _pick(value: Any, i: int) -> Any:
    """Of a number for all axes, or one for each."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return value[i] if len(value) > 1 else value[0]


def _are_known(*values: Any) -> bool:
    """Whether they are numbers, or several, and nothing that the network computes."""
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return all(isinstance(part, int | str) for part in parts)


def _sliding(kernel: Any, stride: Any, padding: Any, dilation: Any, weight: Tensor | None = None) -> Rule | None:
    if not _are_known(kernel, stride, padding, dilation):
        return None

    def slide(i: int, line: Line) -> Line:
        size, spaced = _pick(kernel, i), _pick(dilation, i)
        before = _pick(padding, i)
        if isinstance(before, str):  # the odd location of padding goes behind
            before = spaced * (size - 1) // 2 if before == "same" else 0
        lean = 0.0 if weight is None else spaced * _find_lean(weight, 2 + i)
        return line.slide(size, _pick(stride, i), before, spaced, lean)

    return slide


def _find_lean(weight: Tensor, axis: int) -> float:
    """How far the centre of the weights' squares lies off the middle, in locations."""
    squares = weight.detach().double().square()
    along = squares.sum([one for one in range(squares.ndim) if one != axis]).cpu()
    total = along.sum().item()
    places = torch.arange(len(along), dtype=torch.float64) - (len(along) - 1) / 2
    return (along * places).sum().item() / total if total > 0 else 0.0


def _scattering(*parts: Any) -> Rule | None:
    if not _are_known(*parts):
        return None
    return lambda i, line: line.scatter(*(_pick(part, i) for part in parts))


def _resizing(before: Shape, after: Shape, resize: Callable[[Line, int, int], Line]) -> Rule:
    return lambda i, line: resize(line, before[2 + i], after[2 + i])


def _padding(pairs: Any, count: int) -> Rule | None:
    """Padding of the last axes, the last first: two numbers for each; ``count`` of the axes are those of locations."""
    if isinstance(pairs, int) or not _are_known(pairs):
        return None
    in_front = [*pairs[::2], *(0,) * count]
    return lambda i, line: line.skip(-in_front[count - 1 - i])


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
    :data:`~exitlens.model.geometry.NOWHERE`. So has what is not known here, and changes the shape.
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


LEAST_OFFSET = 0.2  # of a cell; less is not worth the blur, and random weights lean, too
LEAST_SHARE = 0.25  # of the image's shorter side, that a location has to see


@dataclass(frozen=True)
class MapGeometry:
    """One exit's map in the image, one number for each axis of it.

    Attributes:
        offset: how far the map's locations lie from where its cells are drawn (a uniform grid over the image), in cells.
            0 where it is less than a fifth of a cell, and where they have no place of their own: what mixes all locations
            leaves them none.
        feature_offset: likewise of the features, which a neck may have brought to another grid.
        reach: how much of the image a location of the map sees, in pixels.
    """

    offset: tuple[float, ...]
    feature_offset: tuple[float, ...]
    reach: tuple[float, ...]


def find_map_geometry(pieces: Pieces, heads: Sequence[ExitHead]) -> list[MapGeometry]:
    """The geometry of every exit's map for the example's size; empty for sequences.

    Where a map is not as long as the image divided by its jump (convolutions without padding), it is the middles that are
    compared. A neck shrinks by whole cells; where it adds enlarged features to an earlier map, both count equally, as they
    do wherever branches of a network are added.
    """
    image = find_input_locations(pieces.traced)
    if not image:
        return []
    found = locate(pieces.traced, has_channels_last(pieces.traced))
    geometry = []
    for k, head in enumerate(heads):
        own = _find_feature_grid(found, pieces.nodes[k], pieces.layouts[k], pieces.sizes[k])
        grid = _find_map_grid(pieces, own, head, found)
        reach = (
            [min(line.reach, float(n)) for line, n in zip(grid.lines, image, strict=True)]
            if grid.axes
            else map(float, image)
        )
        geometry.append(MapGeometry(_find_offset(grid, image), _find_offset(own, image), tuple(reach)))
    return geometry


def _find_offset(grid: Grid, image: Sequence[int]) -> tuple[float, ...]:
    if not grid.axes:
        return (0.0,) * len(image)
    lines = zip(grid.lines, grid.sizes, image, strict=True)
    found = [round((line.middle(n) - pixels / 2) * n / pixels, 6) for line, n, pixels in lines]
    return tuple(offset if abs(offset) >= LEAST_OFFSET else 0.0 for offset in found)


def _find_map_grid(pieces: Pieces, own: Grid, head: ExitHead, found: dict[fx.Node, Grid]) -> Grid:
    """The grid of the head's map: that of its features, or what its neck makes of them."""
    neck = head.neck if isinstance(head, EvidenceHead) else None
    if not isinstance(neck, ContextNeck):
        return own
    lines, sizes = [line.slide(neck.shrink, neck.shrink) for line in own.lines], [n // neck.shrink for n in own.sizes]
    grid = Grid(own.axes, tuple(lines), tuple(sizes))
    if neck.lateral is not None and pieces.lateral is not None:
        lateral = pieces.lateral
        beside = _find_feature_grid(found, lateral.node, lateral.layout, lateral.size)
        pairs = zip(grid.lines, grid.sizes, lateral.size, strict=False)
        enlarged = tuple(line.resize(old, new, reads=1 if old == new else 2) for line, old, new in pairs)
        grid = join([Grid(grid.axes, enlarged, lateral.size if enlarged else ()), beside])
    return Grid(grid.axes, tuple(_mix(line, find_kernel(len(grid.lines))) for line in grid.lines), grid.sizes)


def _mix(line: Line, kernel: int) -> Line:
    """What the neck's depthwise convolutions see."""
    for _ in range(DEPTH):
        line = line.slide(kernel, before=kernel // 2)
    return line


def _find_feature_grid(found: dict[fx.Node, Grid], node: fx.Node, layout: Layout, size: Sequence[int]) -> Grid:
    """The grid of features with the axes of their canonical form; none where it does not fit how they lie in memory."""
    grid, axes = (
        found.get(node, Grid()),
        {
            "nchw": tuple(range(2, 2 + len(size))),
            "nhwc": tuple(range(1, 1 + len(size))),
            "tokens": (1,),
            "vector": (),
        },
    )
    fits = grid.axes == axes[layout.kind] and grid.sizes == tuple(size)
    return grid.move(range(2, 2 + len(size))) if fits else Grid()


def warn_of_small_reach(geometry: Sequence[MapGeometry], names: Sequence[str], image: Sequence[int], head: str) -> None:
    """Warns by :class:`~exitlens.errors.ReachWarning` of early exits whose locations see too little to carry an answer.

    Args:
        geometry: of every exit. names: of the places of the early ones.
        image: ``(H,W)``; nothing is said of other inputs.
        head: the kind of the exits' heads.
    """
    if len(image) != 2:
        return
    for k, (name, one) in enumerate(zip(names, geometry, strict=False)):
        reach = min(one.reach)
        if reach < LEAST_SHARE * min(image):
            mend = "put it later" if head == "context" else "put it later, or attach with head='context'"
            seen = f"sees {math.ceil(reach)} pixels at each location, of an image of {image[0]}x{image[1]}"
            warnings.warn(f"at: exit {k} after {name!r} {seen}: that is little to answer by; {mend}", ReachWarning, 3)
