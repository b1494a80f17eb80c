"""Generated volumes: a small solid in noise says the class; the brightness of the whole volume is the shortcut."""

from __future__ import annotations

import torch
from torch import Tensor

from exitlens.data.arrays.motifs import check_generated, draw_agreement, draw_labels
from exitlens.data.arrays.sets import ArraySet
from exitlens.data.splits import SPLITS, Split
from exitlens.errors import InputError
from exitlens.types import VolumePreprocess

CLASSES = ("ball", "box", "rod")
_SMALLEST = 10  # voxels of a side
_MADE_AT_ONCE = 256
_SPLITS = {"train": (1200, 41), "validation": (300, 42), "calibration": (600, 43), "test": (600, 44)}  # size, seed


def make_blobs(count: int, *, offset_agreement: float, seed: int, size: int = 20) -> ArraySet:
    """Noisy cubes of one channel, as many of each of three classes; the same arguments give the same volumes.

    A ball, a box, or a rod along one of the axes (``masks`` is True there) says the class.

    Args:
        count: how many.
        offset_agreement: in [0, 1]; how often the brightness is that of the volume's class. Otherwise it is one of the other
            classes', uniformly; so 1/3 makes brightness and class independent. Nothing else depends on it.
        seed: of everything in the volumes.
        size: voxels of a side.

    Raises:
        InputError: for numbers out of range.

    Examples:
        >>> data = xl.make_blobs(3, offset_agreement=0.9, seed=0, size=16)
        >>> data.values.shape, data.classes
        (torch.Size([3, 1, 16, 16, 16]), ('ball', 'box', 'rod'))
    """
    check_generated(count, offset_agreement)
    if not isinstance(size, int) or size < _SMALLEST:
        raise InputError(f"size: expected {_SMALLEST} voxels or more, got {size!r}")
    rng = torch.Generator().manual_seed(seed)
    labels = draw_labels(count, len(CLASSES), rng)  # (N,)
    radius = size * (0.14 + 0.08 * torch.rand(count, generator=rng))  # (N,) voxels
    halves = _draw_halves(labels, radius, rng)  # (N,3)
    room = (size - 1) / 2 - halves
    centre = (size - 1) / 2 + room * (2 * torch.rand(count, 3, generator=rng) - 1)  # (N,3)
    parts = [torch.arange(count)[at : at + _MADE_AT_ONCE] for at in range(0, count, _MADE_AT_ONCE)]
    masks = torch.cat([_fill_solids(labels[i], centre[i], halves[i], size) for i in parts])  # (N,S,S,S)
    levels = torch.linspace(-0.5, 0.5, len(CLASSES))
    agreed = draw_agreement(labels, len(CLASSES), offset_agreement, rng)
    values = 0.5 * torch.randn(count, 1, size, size, size, generator=rng)
    values += 1.5 * masks[:, None] + levels[agreed].view(-1, 1, 1, 1, 1)
    return ArraySet(values, labels, CLASSES, VolumePreprocess((0.0,), (1.0,), (size, size, size)), masks)


def load_blobs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, size: int = 20, limit: int | None = None
) -> ArraySet:
    """Volumes of one split (see :func:`make_blobs`); every split has its own draws.

    ``train`` (1,200) fits weights, ``validation`` (300) chooses checkpoints, ``calibration`` (600) chooses thresholds,
    ``test`` (600) is for reporting only.

    Args:
        split: ``train``, ``validation``, ``calibration`` or ``test``.
        offset_agreement: in [0, 1], see :func:`make_blobs`.
        seed: one number for all splits; each split derives its own from it.
        size: voxels of a side.
        limit: only the first ``limit`` volumes (for quick trials).

    Examples:
        >>> xl.load_blobs("test", limit=6).values.shape
        torch.Size([6, 1, 20, 20, 20])
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
    count, own = _SPLITS[split]
    data = make_blobs(count, offset_agreement=offset_agreement, seed=1000 * seed + own, size=size)
    return data if limit is None else data.first(limit)


def _draw_halves(labels: Tensor, radius: Tensor, rng: torch.Generator) -> Tensor:  # (N,), (N,) -> (N,3)
    """Half of each side; all three have about the same volume."""
    long = torch.nn.functional.one_hot(torch.randint(0, 3, labels.shape, generator=rng), 3)  # (N,3)
    factors = torch.stack([torch.ones_like(long, dtype=torch.float32), torch.full(long.shape, 0.8), 0.5 + 1.5 * long])
    return radius[:, None] * factors[labels, torch.arange(len(labels))]


def _fill_solids(labels: Tensor, centre: Tensor, halves: Tensor, size: int) -> Tensor:  # -> (n,S,S,S) bool
    at = torch.arange(size)
    off = [(at - centre[:, i, None]).abs() / halves[:, i, None] for i in range(3)]  # (n,S) each
    depth, height, width = off[0][:, :, None, None], off[1][:, None, :, None], off[2][:, None, None, :]
    round_ = (depth.square() + height.square() + width.square()) <= 1
    square = (depth <= 1) & (height <= 1) & (width <= 1)
    return torch.where((labels == 0).view(-1, 1, 1, 1), round_, square)
