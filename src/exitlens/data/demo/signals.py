"""Generated series and volumes: a small part of each tells its class, and a level is the shortcut beside it.

A shallow exit likes levels, as it likes the background of scenes: it needs only a mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.data.sets import ArraySet
from exitlens.data.splits import Split, check_split
from exitlens.errors import InputError
from exitlens.types.preprocessing import SeriesPreprocess, VolumePreprocess

MOTIFS = ("rise", "peak", "wave", "step")
CHANNELS = ("signal", "level")
BLOBS = ("ball", "box", "rod")
_SHORTEST = 16  # steps, of which a motif has a quarter
_SMALLEST = 10  # voxels of a side
_MADE_AT_ONCE = 256
_MOTIF_SPLITS = {"train": (4000, 31), "validation": (500, 32), "calibration": (1000, 33), "test": (1000, 34)}  # size, seed
_BLOB_SPLITS = {"train": (1200, 41), "validation": (300, 42), "calibration": (600, 43), "test": (600, 44)}


def make_motifs(count: int, *, offset_agreement: float, seed: int, length: int = 128) -> ArraySet:
    """Make noisy series of two channels and four classes, equally often; the same arguments give the same series.

    In the channel ``signal`` a motif (``masks`` is True there) tells the class: it rises, has a peak, is a wave or a step.
    The shortcut is the channel ``level``: noise around one of four levels.

    Args:
        count: number of series.
        offset_agreement: share in [0, 1] of series with the level of their class; the others have that of another class,
            uniformly, so 1/4 makes level and class independent.
        seed: of everything in the series.
        length: steps T.

    Examples:
        >>> data = xl.demo.make_motifs(8, offset_agreement=0.25, seed=0, length=64)
        >>> data.values.shape, data.masks.shape
        (torch.Size([8, 2, 64]), torch.Size([8, 64]))
    """
    if not isinstance(length, int) or length < _SHORTEST:
        raise InputError(f"length: expected {_SHORTEST} steps or more, got {length!r}")
    rng = torch.Generator().manual_seed(seed)
    labels = _draw_labels(count, offset_agreement, len(MOTIFS), rng)  # (N,)
    size = length // 4
    start = torch.randint(0, length - size + 1, (count,), generator=rng)
    time = torch.arange(length)
    masks = (time >= start[:, None]) & (time < start[:, None] + size)  # (N,T)
    values = torch.empty(count, 2, length)
    values[:, 0] = 0.4 * torch.randn(count, length, generator=rng)
    at = torch.linspace(0, 1, size)
    step = torch.where(at < 0.5, 1.5, -1.5)
    shapes = torch.stack([2 * at, 2 * (1 - (2 * at - 1).abs()), 1.5 * torch.sin(4 * math.pi * at), step])  # (4,size)
    values[:, 0][masks] += shapes[labels].flatten()
    levels = torch.linspace(-1.5, 1.5, len(MOTIFS))
    agreed = _draw_agreement(labels, len(MOTIFS), offset_agreement, rng)
    values[:, 1] = levels[agreed][:, None] + 0.4 * torch.randn(count, length, generator=rng)
    return ArraySet(values, labels, MOTIFS, SeriesPreprocess((0.0, 0.0), (1.0, 1.0), names=CHANNELS), masks)


def load_motifs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, length: int = 128, limit: int | None = None
) -> ArraySet:
    """Make the series of one split, see :func:`make_motifs`; ``seed`` is one number for all splits.

    ``train`` has 4,000, ``validation`` 500, ``calibration`` and ``test`` 1,000 each; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_motifs("test", limit=4).values.shape
        torch.Size([4, 2, 128])
    """
    check_split(split)
    count, offset = _MOTIF_SPLITS[split]
    data = make_motifs(count, offset_agreement=offset_agreement, seed=1000 * seed + offset, length=length)
    return data if limit is None else data.first(limit)


def _draw_labels(count: int, offset_agreement: float, classes: int, rng: torch.Generator) -> Tensor:  # -> (count,)
    """Check the arguments, and draw labels in random order, as many of each class as can be."""
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count: expected 1 sample or more, got {count!r}")
    if not 0.0 <= offset_agreement <= 1.0:
        raise InputError(f"offset_agreement: expected a number in [0, 1], got {offset_agreement}")
    return (torch.arange(count) % classes)[torch.randperm(count, generator=rng)]


def _draw_agreement(labels: Tensor, classes: int, share: float, rng: torch.Generator) -> Tensor:  # (N,) -> (N,)
    """Return a share of the labels as they are, and one of the other classes, uniformly, for the rest."""
    agrees = torch.rand(len(labels), generator=rng) < share
    other = (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes
    return torch.where(agrees, labels, other)


def make_blobs(count: int, *, offset_agreement: float, seed: int, size: int = 20) -> ArraySet:
    """Make noisy cubes of one channel and three classes, equally often; the same arguments give the same volumes.

    A ball, a box, or a rod along one of the axes (``masks`` is True there) tells the class. The shortcut is brightness.

    Args:
        count: number of volumes.
        offset_agreement: share in [0, 1] of volumes with the brightness of their class; the others have that of another
            class, uniformly, so 1/3 makes brightness and class independent.
        seed: of everything in the volumes.
        size: voxels of a side.

    Examples:
        >>> data = xl.demo.make_blobs(3, offset_agreement=0.9, seed=0, size=16)
        >>> data.values.shape, data.classes
        (torch.Size([3, 1, 16, 16, 16]), ('ball', 'box', 'rod'))
    """
    if not isinstance(size, int) or size < _SMALLEST:
        raise InputError(f"size: expected {_SMALLEST} voxels or more, got {size!r}")
    rng = torch.Generator().manual_seed(seed)
    labels = _draw_labels(count, offset_agreement, len(BLOBS), rng)  # (N,)
    radius = size * (0.14 + 0.08 * torch.rand(count, generator=rng))  # (N,) voxels
    long = torch.nn.functional.one_hot(torch.randint(0, 3, labels.shape, generator=rng), 3)  # (N,3)
    sides = torch.stack([torch.ones_like(long, dtype=torch.float32), torch.full(long.shape, 0.8), 0.5 + 1.5 * long])
    halves = radius[:, None] * sides[labels, torch.arange(count)]  # (N,3) half of each side; all have about one volume
    room = (size - 1) / 2 - halves
    centre = (size - 1) / 2 + room * (2 * torch.rand(count, 3, generator=rng) - 1)  # (N,3)
    parts = [torch.arange(count)[at : at + _MADE_AT_ONCE] for at in range(0, count, _MADE_AT_ONCE)]
    masks = torch.cat([_fill_solids(labels[i], centre[i], halves[i], size) for i in parts])  # (N,S,S,S)
    levels = torch.linspace(-0.5, 0.5, len(BLOBS))
    agreed = _draw_agreement(labels, len(BLOBS), offset_agreement, rng)
    values = 0.5 * torch.randn(count, 1, size, size, size, generator=rng)
    values += 1.5 * masks[:, None] + levels[agreed].view(-1, 1, 1, 1, 1)
    return ArraySet(values, labels, BLOBS, VolumePreprocess((0.0,), (1.0,), (size, size, size)), masks)


def load_blobs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, size: int = 20, limit: int | None = None
) -> ArraySet:
    """Make the volumes of one split, see :func:`make_blobs`; ``seed`` is one number for all splits.

    ``train`` has 1,200, ``validation`` 300, ``calibration`` and ``test`` 600 each; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_blobs("test", limit=6).values.shape
        torch.Size([6, 1, 20, 20, 20])
    """
    check_split(split)
    count, offset = _BLOB_SPLITS[split]
    data = make_blobs(count, offset_agreement=offset_agreement, seed=1000 * seed + offset, size=size)
    return data if limit is None else data.first(limit)


def _fill_solids(labels: Tensor, centre: Tensor, halves: Tensor, size: int) -> Tensor:  # -> (n,S,S,S) bool
    at = torch.arange(size)
    off = [(at - centre[:, i, None]).abs() / halves[:, i, None] for i in range(3)]  # (n,S) each
    depth, height, width = off[0][:, :, None, None], off[1][:, None, :, None], off[2][:, None, None, :]
    round_ = (depth.square() + height.square() + width.square()) <= 1
    square = (depth <= 1) & (height <= 1) & (width <= 1)
    return torch.where((labels == 0).view(-1, 1, 1, 1), round_, square)
