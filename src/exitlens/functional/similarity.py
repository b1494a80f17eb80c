"""How far two batches of maps agree: ``(B,*S)`` and ``(B,*S)`` on the same grid -> ``(B,)``.

All of these but :func:`kl` and :func:`divergence` are large by chance (non-negative maps of centred objects); report
:func:`skill` over a null beside them. Maps of texts have one axis, with exact zeros at padding; positions at which both maps
are exactly 0 are left out there, or more padding would mean more agreement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.functional.maps import EPS, as_distribution, top_cells


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p ‖ q) in nats of two distributions over locations."""
    p, q = p.flatten(1), q.flatten(1)
    terms = p * p.clamp_min(EPS).log() - p * q.clamp_min(EPS).log()  # xlogy's gradient at 0 would be infinite
    return terms.sum(1).clamp_min(0)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence divided by ln 2: symmetric, in [0, 1]."""
    p, q = p.flatten(1), q.flatten(1)
    middle = (p + q) / 2
    return ((kl(p, middle) + kl(q, middle)) / (2 * math.log(2))).clamp(0, 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the two maps as vectors (the published consistency figure)."""
    return torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1, eps=EPS)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over locations (CC of saliency benchmarks); 0 where a map is constant."""
    if a.ndim == 2:
        real = _real(a, b).to(a.dtype)
        count = real.sum(1, keepdim=True).clamp_min(1)
        a, b = ((x - (x * real).sum(1, keepdim=True) / count) * real for x in (a, b))
    else:
        a, b = a.flatten(1), b.flatten(1)
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > EPS, (a * b).sum(1) / norms.clamp_min(EPS), torch.zeros_like(norms))


def sim(p: Tensor, q: Tensor) -> Tensor:
    """Histogram intersection of two distributions (SIM of saliency benchmarks), in [0, 1]."""
    return torch.minimum(p.flatten(1), q.flatten(1)).sum(1)


def _real(a: Tensor, b: Tensor) -> Tensor:
    """``(B,N)`` bool: positions of texts that are no padding."""
    return (a != 0) | (b != 0)


def top_iou(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Intersection over union of the top ``fraction`` of cells."""
    real = _real(a, b) if a.ndim == 2 else None
    top_a, top_b = top_cells(a, fraction, real).flatten(1), top_cells(b, fraction, real).flatten(1)
    return (top_a & top_b).sum(1) / (top_a | top_b).sum(1)


MEASURES = {"cc": pearson, "cosine": cosine, "sim": sim, "iou": top_iou, "kl": kl, "divergence": divergence}


def uniform(maps: Tensor) -> Tensor:
    """Uniform maps of the same shape (0 at padding): what a head that looks nowhere in particular would score."""
    return as_distribution((maps != 0).to(maps.dtype) if maps.ndim == 2 else torch.ones_like(maps))


def transplant(other: Tensor, maps: Tensor) -> Tensor:
    """Maps of other samples as maps of these: of texts, cut to the tokens that these have."""
    return as_distribution(other * (maps != 0)) if maps.ndim == 2 else other


def skill(value: float, null: float) -> float:
    """``(m - null) / (1 - null)``: 0 is chance, 1 is perfect; NaN where the null is already perfect."""
    return (value - null) / (1 - null) if null < 1 else math.nan
