"""How features lie in memory (maps with channels first or last, or tokens), and views of them all as ``(B,D,*S)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from exitlens.errors import AttachError

Kind = Literal["nchw", "nhwc", "tokens", "vector"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_PREFIX = 8  # class, distillation and register tokens
Shape = Sequence[int]


@dataclass(frozen=True)
class Layout:
    """One exit's feature layout: ``(B,D,*S)``, ``(B,*S,D)``, ``(B,prefix+N,D)`` or ``(B,D)``, which has no locations."""

    kind: Kind = "nchw"
    prefix: int = 0  # class, distillation and register tokens in front, which are not locations
    grid: tuple[int, ...] | None = None  # ``S`` of tokens on a grid, without the prefix; ``None``: they stay a sequence
    masked: bool = False  # the network's inputs have a padding mask; padding gets no attention

    def canonical(self, features: Tensor) -> Tensor:
        """Return features in this layout as ``(B,D,*S)``; a view, not a copy."""
        if self.kind == "nchw":
            return features
        if self.kind == "vector":
            return features[..., None]
        if self.kind == "nhwc":
            return features.movedim(-1, 1)
        if self.grid is None:
            return features.transpose(1, 2)
        grid: Tensor = features[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return grid

    def locations(self, features: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return which positions of a sequence are locations, not padding (0 in ``mask``) or prefix: ``(B or 1,N)`` bool."""
        keep = mask.bool() if self.masked and mask is not None else None
        if self.grid is not None or self.kind != "tokens" or self.prefix == 0:
            return keep
        behind = torch.arange(features.shape[1], device=features.device)[None] >= self.prefix
        return behind if keep is None else keep & behind

    def channels(self, shape: Shape) -> int:
        """Return ``D`` of features of this shape."""
        return shape[1] if self.kind in ("nchw", "vector") else shape[-1]

    def size(self, shape: Shape) -> tuple[int, ...]:
        """Return the locations ``S`` of features of this shape."""
        if self.kind == "nchw":
            return tuple(shape[2:])
        if self.kind == "vector":
            return (1,)
        if self.kind == "nhwc":
            return tuple(shape[1:-1])
        return self.grid or (shape[1],)


def find_map_layout(
    seen: str, shape: Shape, image: Shape, grids: Sequence[tuple[int, ...]], kind: Kind | None, channels: int | None = None
) -> Layout:
    """Return the layout of features of an image or volume; raise unless the shape fits exactly one.

    ``seen`` begins messages; ``image`` has the locations of the input, ``grids`` those after earlier convolutions (tokens
    lie on one of them, no map is larger), ``kind`` is the user's choice, ``channels`` the axis that the layers before tell.
    """
    if kind == "tokens" or (kind is None and len(shape) == 3):
        return _find_token_layout(seen, shape, image, grids)
    if len(shape) != len(image) + 2:
        raise AttachError(f"at: {seen}: expected a map of {len(image) + 2} axes or tokens of 3. Fix: put the exit earlier")
    if kind is not None:
        return Layout(kind)
    if len(image) == 2 and channels != 1:  # one of the two orders leaves a map of the image's aspect
        aspect, (highest, widest) = image[0] / image[1], grids[-1] if grids else image
        sides = {"nchw": shape[2:], "nhwc": shape[1:3]}  # odd sizes are rounded
        kinds = [k for k, (h, w) in sides.items() if abs(h - aspect * w) <= 1 and h <= highest and w <= widest]
        seen = f"{seen} for an image of {tuple(image)}"
        if not kinds:
            raise AttachError(f"at: {seen}, which is no map of the image (windows, perhaps). Fix: put the exit elsewhere")
        if len(kinds) == 2:
            raise AttachError(f"layout: {seen}, which could be channels first or last. Fix: pass layout='nchw' or 'nhwc'")
        return Layout(cast(Kind, kinds[0]))
    layout = Layout("nhwc" if channels == len(shape) - 1 else "nchw")
    if any(side > pixels for side, pixels in zip(layout.size(shape), image, strict=True)):
        raise AttachError(f"at: {seen} for an input of {tuple(image)}: no map of it. Fix: put the exit elsewhere")
    return layout


def _find_token_layout(seen: str, shape: Shape, image: Shape, grids: Sequence[tuple[int, ...]]) -> Layout:
    count = shape[1]
    candidates = [(count - math.prod(grid), grid) for grid in reversed(grids)]  # the last is that of the patches
    for prefix in range(MAX_PREFIX + 1 if len(image) == 2 else 0):
        sides = ((height, (count - prefix) // height) for height in range(1, count - prefix + 1))
        exact = [grid for grid in sides if math.prod(grid) == count - prefix]
        candidates += [(prefix, grid) for grid in exact if abs(grid[0] / grid[1] - image[0] / image[1]) < 1e-6]
    for prefix, grid in candidates:
        if len(shape) == 3 and len(grid) == len(image) and 0 <= prefix <= MAX_PREFIX:
            return Layout("tokens", prefix, grid)
    raise AttachError(
        f"layout: {seen} for an image of {tuple(image)}: no grid and up to {MAX_PREFIX} class or register tokens make that "
        "number of tokens. Fix: put the exit elsewhere"
    )


def find_series_layout(
    seen: str, shape: Shape, length: int, grids: Sequence[tuple[int, ...]], kind: Kind | None, channels: int | None = None
) -> Layout:
    """Tell ``(B,D,T)`` of convolutions (kind ``nchw``) from ``(B,prefix+T,D)``; arguments as of :func:`find_map_layout`."""
    seen = f"{seen} for a series of {length}"
    if len(shape) != 3:
        raise AttachError(f"at: {seen}: expected (B,D,T) or (B,T,D). Fix: put the exit elsewhere")
    if kind is None and channels is None and sum(size == length for size in shape[1:]) == 1:
        channels = 1 if shape[2] == length else 2
    if kind is None and channels is None:
        raise AttachError(f"layout: {seen}: could be either. Fix: pass layout='nchw' (B,D,T) or 'tokens' (B,T,D)")
    kind = kind or ("nchw" if channels == 1 else "tokens")
    if shape[2 if kind == "nchw" else 1] > length + MAX_PREFIX:
        raise AttachError(f"at: {seen}, which has more locations than the series. Fix: put the exit elsewhere")
    if kind == "nchw":
        return Layout("nchw")
    for size in (length, *(grid[0] for grid in reversed(grids) if len(grid) == 1)):
        if 0 < shape[1] - size <= MAX_PREFIX:
            return Layout("tokens", shape[1] - size, (size,))
        if shape[1] == size:
            break
    return Layout("tokens")


def find_vector_layout(seen: str, shape: Shape, features: int, kind: Kind | None) -> Layout:
    """Tell features ``(B,D)`` without locations from ``(B,prefix+N,D)`` with a token for each of the vector's features."""
    if len(shape) not in (2, 3) or ((len(shape) == 2) != (kind in (None, "vector")) and kind is not None):
        raise AttachError(f"at: {seen}: expected (B,D), or tokens (B,N,D). Fix: put the exit elsewhere")
    if len(shape) == 3 and kind in (None, "tokens") and 0 < shape[1] - features <= MAX_PREFIX and features > 1:
        return Layout("tokens", shape[1] - features, (features,))
    return Layout("vector" if len(shape) == 2 else kind or "tokens")


def find_sequence_layout(seen: str, shape: Shape, length: int, kind: Kind | None) -> Layout:
    """Tell ``(B,N,D)`` tokens from ``(B,D,N)`` of one-dimensional convolutions (kind ``nchw``)."""
    seen = f"{seen} for {length} tokens"
    if len(shape) != 3 or length not in shape[1:]:
        raise AttachError(f"at: {seen}: expected (B,{length},D) or (B,D,{length}). Fix: put the exit elsewhere")
    if kind is None and shape[1] == shape[2]:
        raise AttachError(f"layout: {seen}: could be either. Fix: pass layout='tokens' (B,N,D) or 'nchw' (B,D,N)")
    return Layout(kind or ("tokens" if shape[1] == length else "nchw"))
