"""Baselines: what stands in deleted places of images, series and volumes, so that little of them is left."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "blur", "road"]
BLUR = 0.2  # width of the moving averages as a share of each axis
NOISE = 0.01  # of imputed places, in standard deviations of the channel
TOLERANCE, MOST_STEPS = 1e-4, 1000  # of the imputation: residual over the first one; steps


def fill(values: Tensor, missing: Tensor, baseline: Baseline) -> Tensor:  # (B,C,*S), (B,1,*S) bool -> (B,C,*S)
    """Return values for the missing places (those of the others are of no use): the mean of a channel, or as named."""
    if baseline == "blur":
        return blur(values)
    if baseline == "road":
        return impute(values, missing)
    return values.mean(tuple(range(2, values.ndim)), keepdim=True).expand_as(values)


def blur(values: Tensor) -> Tensor:  # (B,C,*S) -> (B,C,*S)
    """Average three times over a fifth of each axis, which is nearly a Gaussian whose deviation is a tenth of the axis.

    RISE (arXiv 1806.07421) blurs images for insertion with a deviation of 5 of 224 pixels, which leaves what is in a cell
    of a fifth legible. At the borders the average is over what is there.
    """
    blurred = values.double()
    for axis in range(2, values.ndim):
        count = values.shape[axis]
        reach, position = round(BLUR * count) // 2, torch.arange(count, device=values.device)
        low, high = (position - reach).clamp_min(0), (position + reach + 1).clamp_max(count)
        width = (high - low).view(-1, *[1] * (values.ndim - 1 - axis))
        for _ in range(3):
            first = torch.zeros_like(blurred.narrow(axis, 0, 1))
            sums = torch.cat([first, blurred.cumsum(axis)], axis)
            blurred = (sums.index_select(axis, high) - sums.index_select(axis, low)) / width
    return blurred.to(values.dtype)


def impute(values: Tensor, missing: Tensor, noise: float = NOISE, seed: int = 0) -> Tensor:  # as :func:`fill`
    """Return the noisy linear imputation of ROAD (arXiv 2202.00449, section 4): each place is the mean of its neighbours.

    Neighbours along an axis weigh twice as much as diagonal ones, and those beyond the border nothing, as in the paper; the
    same binomial weights, less the centre, serve series and volumes. The linear system is symmetric and positive, and is
    solved for all samples at once by conjugate gradients. Noise is relative to each channel's standard deviation.
    """
    axes, lost = tuple(range(2, values.ndim)), missing.to(torch.float32)
    known = values.float() * (1 - lost)
    degree = _add_neighbours(torch.ones_like(lost))

    def spread(x: Tensor) -> Tensor:
        return lost * (degree * x - _add_neighbours(x))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    x = lost * known.sum(axes, keepdim=True) / (1 - lost).sum(axes, keepdim=True).clamp_min(1)
    residual = lost * _add_neighbours(known) - spread(x)
    direction, squared = residual, dot(residual, residual)
    enough = squared * TOLERANCE**2
    for _ in range(MOST_STEPS):
        if bool((squared <= enough).all()):
            break
        moved = spread(direction)
        step = _divide(squared, dot(direction, moved))
        x, residual = x + step * direction, residual - step * moved
        before, squared = squared, dot(residual, residual)
        direction = residual + _divide(squared, before) * direction
    generator = torch.Generator().manual_seed(seed)
    spreads = values.float().std(axes, correction=0, keepdim=True)
    drawn = torch.randn(values.shape, generator=generator).to(values.device)
    return (x + lost * noise * spreads * drawn).to(values.dtype)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, or 0 where ``b`` is 0: samples that are solved already stay as they are."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)


def _add_neighbours(x: Tensor) -> Tensor:  # (B,C,*S) -> (B,C,*S)
    """Sum the neighbours with weights 1, 2, 1 along every axis, without the place itself."""
    total = x
    for axis in range(2, x.ndim):
        last = x.shape[axis] - 1
        wider = 2 * total
        wider.narrow(axis, 0, last).add_(total.narrow(axis, 1, last))
        wider.narrow(axis, 1, last).add_(total.narrow(axis, 0, last))
        total = wider
    centre: int = 2 ** (x.ndim - 2)
    return total - centre * x
