"""Synthetic logits of a thousand classes, and a compact trace of a million samples made of them."""

from __future__ import annotations

import torch
from torch import Tensor

import exitlens as xl
from exitlens.functional.compact import compress

EXITS, CLASSES = 4, 1000
COST = torch.tensor([0.2, 0.4, 0.7, 1.0])


def draw_logits(count: int, seed: int) -> tuple[Tensor, Tensor]:  # (N,K,C), (N,)
    """Later exits are better; classes come in families, so that the runners-up are near; samples differ in difficulty."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    logits = 1.5 * torch.randn(count, 1, CLASSES, generator=rng) + torch.randn(count, EXITS, CLASSES, generator=rng)
    relatives = (labels[:, None] // 20) * 20 + torch.arange(20)
    strength = torch.tensor([4.0, 5.0, 6.0, 7.0]) * (0.3 + 1.4 * torch.rand(count, 1, generator=rng))
    logits.scatter_add_(2, relatives[:, None].expand(-1, EXITS, -1), (0.5 * strength)[..., None].expand(-1, -1, 20))
    logits.scatter_add_(2, labels[:, None, None].expand(-1, EXITS, 1), 0.6 * strength[..., None])
    return logits, labels


def draw_divergence(count: int, seed: int) -> Tensor:  # (N,K)
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, EXITS, generator=rng) * torch.tensor([0.5, 0.3, 0.1, 0.0])


def make_trace(logits: Tensor, labels: Tensor, compact: bool) -> xl.Trace:
    kept = compress(logits, labels) if compact else logits
    return xl.Trace(kept, labels, draw_divergence(len(labels), 0), COST)


def make_million(prototypes: int, count: int) -> xl.Trace:
    """Compact logits of ``count`` samples, each a prototype's times a number of its own.

    The compact form of logits times s is exactly that of the logits, with distances times s and the same weights, so these
    are the traces that as many full logits would have given.
    """
    parts, labels = [], []
    for seed in range(-(-prototypes // 500)):
        logits, known = draw_logits(500, seed)
        parts.append(compress(logits, known))
        labels.append(known)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(count, generator=rng) % prototypes
    scale = 0.6 + torch.rand(count, generator=rng)

    def spread(name: str) -> Tensor:
        value = torch.cat([getattr(part, name) for part in parts])[rows]
        return value if name in ("weights", "classes") else value.mul_(scale.view(-1, *[1] * (value.ndim - 1)))

    names = ("top", "classes", "label", "span", "weights")
    whole = xl.CompactLogits(**{name: spread(name) for name in names}, num_classes=CLASSES)
    hashes = torch.randint(-(2**62), 2**62, (count,), generator=rng)
    return xl.Trace(whole, torch.cat(labels)[rows], draw_divergence(count, 1), COST, sample_hashes=hashes)
