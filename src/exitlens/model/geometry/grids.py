"""Where the locations of a tensor lie in the image, and what sliding, padding and resizing make of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


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
