"""What reshaping, permuting and slicing do to the axes along which locations lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from exitlens.model.geometry.grids import NOWHERE, Grid


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
