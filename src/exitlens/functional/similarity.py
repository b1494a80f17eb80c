"""How far two batches of maps agree: ``(B,*S)`` and ``(B,*S)`` on the same grid -> ``(B,)``.

All of these but :func:`kl` and :func:`divergence` are large by chance (non-negative maps of centred objects); report
:func:`skill` over a null beside them. Padding is left out (:func:`~exitlens.functional.maps.find_locations`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitlens.functional.maps import EPS, as_distribution, find_locations, top_cells


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
    real = find_locations(a, b)
    a, b = _centre(a, real), _centre(b, real)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > EPS, (a * b).sum(1) / norms.clamp_min(EPS), torch.zeros_like(norms))


def sim(p: Tensor, q: Tensor) -> Tensor:
    """Histogram intersection of two distributions (SIM of saliency benchmarks), in [0, 1]."""
    return torch.minimum(p.flatten(1), q.flatten(1)).sum(1)


def _centre(x: Tensor, real: Tensor | None) -> Tensor:  # (B,*S) -> (B,S)
    """Maps less their mean over the locations; 0 elsewhere."""
    x = x.flatten(1)
    if real is None:
        return x - x.mean(1, keepdim=True)
    inside = real.flatten(1).to(x.dtype)
    return (x - (x * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp_min(1)) * inside


def top_iou(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Intersection over union of the top ``fraction`` of cells."""
    real = find_locations(a, b)
    top_a, top_b = top_cells(a, fraction, real).flatten(1), top_cells(b, fraction, real).flatten(1)
    return (top_a & top_b).sum(1) / (top_a | top_b).sum(1)


MEASURES = {"cc": pearson, "cosine": cosine, "sim": sim, "iou": top_iou, "kl": kl, "divergence": divergence}


def uniform(maps: Tensor) -> Tensor:
    """Uniform maps of the same shape (0 at padding): what a head that looks nowhere in particular would score."""
    real = find_locations(maps)
    return as_distribution(torch.ones_like(maps) if real is None else real.to(maps.dtype))


def transplant(other: Tensor, maps: Tensor) -> Tensor:
    """Maps of other samples as maps of these, cut to the locations that these have."""
    real = find_locations(maps)
    return other if real is None else as_distribution(other * real)


def skill(value: float, null: float) -> float:
    """``(m - null) / (1 - null)``: 0 is chance, 1 is perfect; NaN where the null is already perfect."""
    return (value - null) / (1 - null) if null < 1 else math.nan


def pair_samples(count: int, seed: int) -> Tensor:
    """For each image another one, drawn at random: a random cycle, so that no image is its own partner."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
