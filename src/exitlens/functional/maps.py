"""Attention maps as distributions over locations: normalise, find padding, regrid, rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import InputError

EPS = 1e-12


def all_finite(x: Tensor) -> bool:
    """Whether no element is NaN or infinite; one sum tells, but for sums that overflow, which are looked at again."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def as_distribution(x: Tensor) -> Tensor:  # (B,*S) -> (B,*S)
    """Scales non-negative maps so that each sums to 1; a map that is zero everywhere becomes uniform."""
    flat = x.flatten(1).clamp_min(0)
    total = flat.sum(1, keepdim=True)
    uniform = torch.full_like(flat, 1.0 / flat.shape[1])
    return torch.where(total > EPS, flat / total.clamp_min(EPS), uniform).view_as(x)


def find_locations(*maps: Tensor) -> Tensor | None:  # (B,*S) each -> (B,*S) bool
    """Which positions of maps of the same samples are locations; ``None``: all of them.

    Maps of a sequence are exactly 0 at its padding. Positions where all of them are exactly 0 are no locations, or more
    padding would mean more agreement.
    """
    if maps[0].ndim != 2:
        return None
    return torch.stack([m != 0 for m in maps]).any(0)


def energy(features: Tensor) -> Tensor:  # (B,D,*S) -> (B,*S)
    """Channel energy ``sum_d f_d^2`` as a distribution: the map of attention transfer (arXiv 1612.03928, eq. 1, p=2)."""
    return as_distribution(features.float().square().sum(1))


def regrid(x: Tensor, size: tuple[int, ...]) -> Tensor:  # (B,*S) -> (B,*size)
    """Averages maps over the areas of a coarser grid; the mean is kept, so renormalise a distribution afterwards.

    Raises :class:`InputError` if ``size`` is finer than the map, or the numbers of axes differ.
    """
    old = tuple(x.shape[1:])
    if old == tuple(size):
        return x
    if len(old) != len(size) or any(new > now for new, now in zip(size, old, strict=True)):
        raise InputError(f"size: a map of {old} can only be averaged down to a coarser grid, got {tuple(size)}")
    pools: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return pools[len(old) - 1](x[:, None], tuple(size))[:, 0]


def on_common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of distributions on the coarser of their grids (per axis), each renormalised to sum 1."""
    size = tuple(min(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
    return as_distribution(regrid(a, size)), as_distribution(regrid(b, size))


def geometric_mean(maps: Sequence[Tensor], sharpness: float = 1.0) -> Tensor:  # (B,*S) each -> (B,*T)
    """The geometric mean of distributions over locations, normalised and detached, on the coarsest grid of them (per axis).

    Also called a logarithmic opinion pool: a location counts as far as all maps agree that it does. The mean of attention
    scores before their softmax gives the same. What is 0 in all maps (padding) stays 0.

    Args:
        sharpness: power that the mean is raised to before it is normalised.
    """
    size = tuple(min(sides) for sides in zip(*(one.shape[1:] for one in maps), strict=True))
    together = torch.stack([as_distribution(regrid(one.detach(), size)) for one in maps])
    logs = (sharpness * together.clamp_min(EPS).log().mean(0)).masked_fill((together == 0).all(0), -torch.inf)
    return logs.flatten(1).softmax(1).view_as(logs)


def place(x: Tensor, offset: Sequence[float]) -> Tensor:  # (...,*S) -> (...,*S)
    """Moves maps by a fraction of a cell along their last axes, towards larger indices where it is positive.

    A cell's mass is shared between the two cells that it comes to lie on (linear interpolation); what would leave the map
    stays in its edge cells, so that sums are kept. Maps that are not moved are returned as they are.

    Args:
        offset: in cells, for each of the last axes.
    """
    for axis, by in enumerate(offset, x.ndim - len(offset)):
        if by:
            x = (x.movedim(axis, -1) @ make_shift(x.shape[axis], by).to(x)).movedim(-1, axis)
    return x


def make_shift(count: int, by: float) -> Tensor:  # -> (count,count), rows sum to 1
    """How much of each cell comes to lie on each other, when all move by so many cells: ``x @`` it moves the last axis."""
    goal = (torch.arange(count, dtype=torch.float64) + by).clamp(0, count - 1)
    return (1 - (goal[:, None] - torch.arange(count)).abs()).clamp_min(0)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B,h,w) -> (B,H,W)
    """Bilinear enlargement, for pictures only; measures compare maps on the coarser grid."""
    return F.interpolate(x[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def class_evidence(evidence: Tensor, labels: Tensor) -> Tensor:  # (B,C,*S), (B,) -> (B,*S)
    """Evidence of one class per sample, centred over the classes at every location (what *distinguishes* the class)."""
    index = labels.view(-1, 1, *[1] * (evidence.ndim - 2)).expand(-1, 1, *evidence.shape[2:])
    return evidence.gather(1, index).squeeze(1) - evidence.mean(1)


def label_evidence(evidence: Tensor, labels: Tensor) -> Tensor:  # (B,C,*S), (B,C) -> (B,*S)
    """The mean evidence of a sample's labels, which compete with none; of a sample without any, less that of all labels."""
    some = labels.any(1, keepdim=True)
    weights = torch.where(some, labels.float(), -torch.ones_like(evidence.flatten(2)[..., 0]))  # (B,C)
    weights = weights / weights.abs().sum(1, keepdim=True)
    return torch.einsum("bc,bc...->b...", weights, evidence)


def top_cells(x: Tensor, fraction: float, real: Tensor | None = None) -> Tensor:  # (B,*S) -> (B,*S) bool
    """True at the ``ceil(fraction * locations)`` largest cells of each map; ties go to the earlier cell.

    ``fraction`` is in (0, 1]; ``real`` ``(B,*S)`` bool tells which cells are locations (padding is never chosen).
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: expected a number in (0, 1], got {fraction}")
    flat = x.flatten(1)
    if real is None:
        keep = max(1, -int(-fraction * flat.shape[1] // 1))
        order = flat.argsort(dim=1, descending=True, stable=True)[:, :keep]
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view(x.shape)
    locations = real.flatten(1)
    order = flat.masked_fill(~locations, -torch.inf).argsort(dim=1, descending=True, stable=True)
    keeps = (fraction * locations.sum(1, keepdim=True)).ceil().clamp_min(1)  # (B,1)
    first = torch.arange(flat.shape[1], device=flat.device)[None] < keeps
    return (torch.zeros_like(locations).scatter_(1, order, first) & locations).view(x.shape)
