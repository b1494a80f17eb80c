"""Generated series: a motif at a random time says the class; a second channel's level is the shortcut.

A shallow exit likes the level, as it likes the background of scenes: it needs no more than a mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.data.arrays.sets import ArraySet
from exitlens.data.splits import SPLITS, Split
from exitlens.errors import InputError
from exitlens.types import SeriesPreprocess

CLASSES = ("rise", "peak", "wave", "step")
CHANNELS = ("signal", "level")
_SHORTEST = 16  # steps, of which a motif has a quarter
_SPLITS = {"train": (4000, 31), "validation": (500, 32), "calibration": (1000, 33), "test": (1000, 34)}  # size, seed


def make_motifs(count: int, *, offset_agreement: float, seed: int, length: int = 128) -> ArraySet:
    """Noisy series of two channels, as many of each of four classes; the same arguments give the same series.

    In the channel ``signal`` a motif (``masks`` is True there) says the class: it rises, has a peak, is a wave or a step.
    The channel ``level`` is noise around one of four levels.

    Args:
        count: how many.
        offset_agreement: in [0, 1]; how often the level is that of the series' class. Otherwise it is one of the other
            classes', uniformly; so 1/4 makes level and class independent. Nothing else depends on it.
        seed: of everything in the series.
        length: steps T.

    Raises:
        InputError: for numbers out of range.

    Examples:
        >>> data = xl.make_motifs(8, offset_agreement=0.25, seed=0, length=64)
        >>> data.values.shape, data.masks.shape
        (torch.Size([8, 2, 64]), torch.Size([8, 64]))
    """
    check_generated(count, offset_agreement)
    if not isinstance(length, int) or length < _SHORTEST:
        raise InputError(f"length: expected {_SHORTEST} steps or more, got {length!r}")
    rng = torch.Generator().manual_seed(seed)
    labels = draw_labels(count, len(CLASSES), rng)  # (N,)
    size = length // 4
    start = torch.randint(0, length - size + 1, (count,), generator=rng)
    time = torch.arange(length)
    masks = (time >= start[:, None]) & (time < start[:, None] + size)  # (N,T)
    values = torch.empty(count, 2, length)
    values[:, 0] = 0.4 * torch.randn(count, length, generator=rng)
    values[:, 0][masks] += _draw_shapes(size)[labels].flatten()
    levels = torch.linspace(-1.5, 1.5, len(CLASSES))
    agreed = draw_agreement(labels, len(CLASSES), offset_agreement, rng)
    values[:, 1] = levels[agreed][:, None] + 0.4 * torch.randn(count, length, generator=rng)
    return ArraySet(values, labels, CLASSES, SeriesPreprocess((0.0, 0.0), (1.0, 1.0), names=CHANNELS), masks)


def load_motifs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, length: int = 128, limit: int | None = None
) -> ArraySet:
    """Series of one split (see :func:`make_motifs`); every split has its own draws.

    ``train`` (4,000) fits weights, ``validation`` (500) chooses checkpoints, ``calibration`` (1,000) chooses thresholds,
    ``test`` (1,000) is for reporting only.

    Args:
        split: ``train``, ``validation``, ``calibration`` or ``test``.
        offset_agreement: in [0, 1], see :func:`make_motifs`.
        seed: one number for all splits; each split derives its own from it.
        length: steps T.
        limit: only the first ``limit`` series (for quick trials).

    Examples:
        >>> xl.load_motifs("test", limit=4).values.shape
        torch.Size([4, 2, 128])
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
    count, own = _SPLITS[split]
    data = make_motifs(count, offset_agreement=offset_agreement, seed=1000 * seed + own, length=length)
    return data if limit is None else data.first(limit)


def _draw_shapes(size: int) -> Tensor:  # -> (4,size)
    at = torch.linspace(0, 1, size)
    step = torch.where(at < 0.5, 1.5, -1.5)
    return torch.stack([2 * at, 2 * (1 - (2 * at - 1).abs()), 1.5 * torch.sin(4 * math.pi * at), step])


def check_generated(count: int, offset_agreement: float) -> None:
    """Raises :class:`InputError` for a number of samples or an agreement out of range."""
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count: expected 1 sample or more, got {count!r}")
    if not 0.0 <= offset_agreement <= 1.0:
        raise InputError(f"offset_agreement: expected a number in [0, 1], got {offset_agreement}")


def draw_labels(count: int, classes: int, rng: torch.Generator) -> Tensor:  # -> (count,)
    """Labels in random order, as many of each class as can be."""
    return (torch.arange(count) % classes)[torch.randperm(count, generator=rng)]


def draw_agreement(labels: Tensor, classes: int, share: float, rng: torch.Generator) -> Tensor:  # (N,) -> (N,)
    """For a share of the samples their own label, for the others one of the other classes, uniformly."""
    agrees = torch.rand(len(labels), generator=rng) < share
    other = (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes
    return torch.where(agrees, labels, other)
