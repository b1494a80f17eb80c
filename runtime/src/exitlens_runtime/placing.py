"""Maps moved to where their locations lie in the image, as ``exitlens.functional.maps.place`` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exitlens_runtime.routing import Array


def place(x: Array, offset: Sequence[float]) -> Array:  # (...,*S) -> (...,*S)
    """Moves maps by a fraction of a cell along their last axes; what would leave the map stays in its edge cells."""
    for axis, by in enumerate(offset, x.ndim - len(offset)):
        if by:
            moved: Array = np.moveaxis(x, axis, -1) @ _make_shift(x.shape[axis], by).astype(x.dtype)
            x = np.moveaxis(moved, -1, axis)
    return x


def _make_shift(count: int, by: float) -> Array:  # -> (count,count), rows sum to 1
    goal = np.clip(np.arange(count) + by, 0, count - 1)
    shift: Array = np.maximum(1 - np.abs(goal[:, None] - np.arange(count)), 0)
    return shift
