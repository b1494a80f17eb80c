"""Where every exit's map lies in the image, and how much of the image its locations see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from exitlens.errors import ReachWarning
from exitlens.model.cutting.boundaries import find_input_locations, has_channels_last
from exitlens.model.cutting.split import Pieces
from exitlens.model.geometry.grids import Grid, Line, join
from exitlens.model.geometry.walk import locate
from exitlens.model.heads.exit_heads import EvidenceHead, ExitHead
from exitlens.model.heads.necks import DEPTH, ContextNeck, find_kernel
from exitlens.model.layouts import Layout

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
