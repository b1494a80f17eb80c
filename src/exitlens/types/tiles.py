"""Tiles: parts of an image that leave at an exit each for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exitlens.errors import InputError
from exitlens.types.settings import COUNT, WHOLE, check_number


@dataclass(frozen=True)
class Tiles:
    """Squares of ``side`` pixels, which go on from exit 0 with a ``halo`` of their surroundings, in pixels.

    The first stage sees the whole image. What a tile answers later equals what the whole image answers there if no pixel
    that the later stages see from it lies beyond the halo; at the image's edges the halo ends where the image does.

    Examples:
        >>> xl.types.Tiles(side=64, halo=32).count((256, 128))
        (4, 2)
    """

    side: int
    halo: int

    def __post_init__(self) -> None:
        check_number("tiles: side", self.side, COUNT)
        check_number("tiles: halo", self.halo, WHOLE)

    def count(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the number of tiles along the height and the width of an image; raise :class:`InputError` for a rest."""
        height, width = size
        if height % self.side or width % self.side:
            raise InputError(
                f"tiles: expected images whose sides are multiples of {self.side}, got {(height, width)}. Fix: choose "
                "another side, or resize or pad the images"
            )
        return height // self.side, width // self.side

    def window(self, size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of a tile with its halo, at most those of the image."""
        height, width = size
        return min(height, self.side + 2 * self.halo), min(width, self.side + 2 * self.halo)

    def find_overhead(self, size: Sequence[int]) -> float:
        """Return the area of a tile with its halo over that of the tile: what a tile costs in stages after the first."""
        height, width = self.window(size)
        return height * width / self.side**2

    def check_stride(self, stride: float) -> None:
        """Raise :class:`InputError` unless tile and halo are whole cells of features of this many pixels."""
        if stride != int(stride) or self.side % int(stride) or self.halo % int(stride):
            raise InputError(
                f"tiles: features of {stride:g} pixels a cell do not divide a side of {self.side} and a halo of "
                f"{self.halo}. Fix: choose multiples of {stride:g}"
            )
