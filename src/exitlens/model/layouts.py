"""How features lie in memory (maps with channels first or last, or tokens), and views of them all as ``(B,D,*S)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exitlens.errors import AttachError

Kind = Literal["nchw", "nhwc", "tokens"]
KINDS: tuple[Kind, ...] = ("nchw", "nhwc", "tokens")
MAX_PREFIX = 8  # class, distillation and register tokens


@dataclass(frozen=True)
class Layout:
    """One exit's feature layout.

    Attributes:
        kind: ``nchw`` ``(B,D,H,W)`` (or ``(B,D,*S)``), ``nhwc`` ``(B,H,W,D)``, or ``tokens`` ``(B,prefix+N,D)``.
        prefix: number of class, distillation and register tokens in front, which are no locations.
        grid: ``(H,W)`` of the tokens of an image, without the prefix. With ``None`` the tokens stay a sequence of all
            positions, in which the prefix gets no attention.
        masked: the network's inputs have a padding mask; padding gets no attention.
    """

    kind: Kind = "nchw"
    prefix: int = 0
    grid: tuple[int, int] | None = None
    masked: bool = False

    def canonical(self, features: Tensor) -> Tensor:
        """Features in this layout -> ``(B,D,*S)``; a view, not a copy."""
        if self.kind == "nchw":
            return features
        if self.kind == "nhwc":
            return features.permute(0, 3, 1, 2)
        if self.grid is None:
            return features.transpose(1, 2)
        grid: Tensor = features[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return grid

    def locations(self, features: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Which positions of a sequence are locations, ``(B or 1,N)`` bool; ``None`` if all are. Padding and prefix are not.

        The ``mask`` ``(B,N)``, 0 for padding, is used if :attr:`masked`.
        """
        keep = mask.bool() if self.masked and mask is not None else None
        if self.grid is not None or self.kind != "tokens" or self.prefix == 0:
            return keep
        behind = torch.arange(features.shape[1], device=features.device)[None] >= self.prefix
        return behind if keep is None else keep & behind

    def channels(self, shape: Sequence[int]) -> int:
        """``D`` of features of this shape."""
        return shape[1] if self.kind == "nchw" else shape[-1]

    def size(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The locations ``S`` of features of this shape."""
        if self.kind == "nchw":
            return tuple(shape[2:])
        if self.kind == "nhwc":
            return tuple(shape[1:3])
        return self.grid or (shape[1],)


def find_layout(
    name: str,
    shape: Sequence[int],
    image: Sequence[int],
    grids: Sequence[tuple[int, int]],
    kind: Kind | None = None,
    length: int = 0,
) -> Layout:
    """The layout of the features after module ``name``, told from their shape.

    Args:
        shape: of the features, batch first.
        image: ``(H,W)`` of the input, or however many axes follow its channels; empty for a sequence.
        grids: ``(H,W)`` of the outputs of earlier convolutions; the tokens are one of these grids, and no map is larger.
        kind: what the user says it is; then only the details are found out.
        length: of the sequence, in tokens.

    Raises :class:`AttachError` if the shape fits no layout, or more than one.
    """
    seen = f"after {name!r} the features are {tuple(shape)}"
    if not image:
        return _find_sequence_layout(f"{seen} for {length} tokens", shape, length, kind)
    if len(image) != 2:
        return _find_grid_layout(seen, shape, image)
    if kind == "tokens" or (kind is None and len(shape) == 3):
        return _find_token_layout(name, shape, image, grids)
    if len(shape) != 4:
        raise AttachError(f"at: {seen}: expected a map of 4 axes or tokens of 3: put the exit earlier")
    if kind is not None:
        return Layout(kind)
    aspect, (highest, widest) = image[0] / image[1], grids[-1] if grids else image

    def fits(height: int, width: int) -> bool:  # the image's aspect ratio, with odd sizes rounded
        return abs(height - aspect * width) <= 1 and height <= highest and width <= widest

    first, last = fits(*shape[2:]), fits(*shape[1:3])
    seen = f"{seen} for an image of {tuple(image)}"
    if not first and not last:
        raise AttachError(f"at: {seen}, which is no map of the image (windows, perhaps): put the exit elsewhere")
    if first == last:
        raise AttachError(f"layout: {seen}, which could be channels first or last: pass layout='nchw' or 'nhwc'")
    return Layout("nchw" if first else "nhwc")


def _find_sequence_layout(seen: str, shape: Sequence[int], length: int, kind: Kind | None) -> Layout:
    """Features of a sequence: ``(B,N,D)`` tokens, or ``(B,D,N)`` of one-dimensional convolutions (kind ``nchw``)."""
    if len(shape) != 3 or length not in shape[1:]:
        raise AttachError(f"at: {seen}: expected (B,{length},D) or (B,D,{length}): put the exit elsewhere")
    if kind is None and shape[1] == shape[2]:
        raise AttachError(f"layout: {seen}: could be either: pass layout='tokens' (B,N,D) or 'nchw' (B,D,N)")
    if kind is not None:
        return Layout(kind)
    return Layout("tokens" if shape[1] == length else "nchw")


def _find_grid_layout(seen: str, shape: Sequence[int], size: Sequence[int]) -> Layout:
    """Features ``(B,D,*S)`` of an input whose channels come before another number of axes than two."""
    if len(shape) != len(size) + 2 or any(mine > theirs for mine, theirs in zip(shape[2:], size, strict=True)):
        wanted = "expected (B,D) and up to as many locations"
        raise AttachError(f"at: {seen} for an input of {tuple(size)}: {wanted}: put the exit elsewhere")
    return Layout("nchw")


def _find_token_layout(name: str, shape: Sequence[int], image: Sequence[int], grids: Sequence[tuple[int, int]]) -> Layout:
    count = shape[1]
    for grid in reversed(grids):  # the patch embedding is the last map before the tokens
        prefix = count - grid[0] * grid[1]
        if 0 <= prefix <= MAX_PREFIX:
            return Layout("tokens", prefix, grid)
    for prefix in range(MAX_PREFIX + 1):
        for height in range(1, count - prefix + 1):
            width = (count - prefix) // height
            if height * width == count - prefix and abs(height / width - image[0] / image[1]) < 1e-6:
                return Layout("tokens", prefix, (height, width))
    raise AttachError(
        f"layout: after {name!r} there are {count} tokens for an image of {tuple(image)}: no grid and up to {MAX_PREFIX} "
        "class or register tokens make that number: put the exit elsewhere"
    )
