"""Scores, probabilities and likelihoods of compact logits, at any temperature.

Computed in float64, a part of the rows after the other. All agree with the full logits' to about 1e-7; for logits with
dozens of almost equal classes at the top, to 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.types.compact import CompactLogits, Logits

ROWS = 1 << 12  # that are computed at once
EXACT = 1 << 17  # samples, up to which likelihoods are float64


class Exponentials(NamedTuple):
    """``exp(-x/T)`` of the distances x that a sum over all classes is made of.

    Attributes:
        gaps: ``(n,m)`` distances of the largest logits. kept: ``(n,m)`` their exponentials.
        nodes: ``(n,q)``. others: ``(n,q)`` the nodes' exponentials times their weights.
        rest: ``(n,)`` the sum of the exponentials of all logits but the largest. total: ``(n,)`` of all.
    """

    gaps: Tensor
    kept: Tensor
    nodes: Tensor
    others: Tensor
    rest: Tensor
    total: Tensor


def _exponentiate(logits: CompactLogits, temperature: float) -> Exponentials:
    gaps, nodes = logits.top[..., :1].double() - logits.top.double(), logits.nodes()
    kept, others = (gaps / -temperature).exp(), logits.weights * (nodes / -temperature).exp()
    # where interpolation fails (temperatures below 0.01 and dozens of equal classes), the sum keeps within its bounds
    most, least = ((logits.num_classes - gaps.shape[-1]) * (logits.span.double() / -temperature).exp()).unbind(-1)
    rest = others.sum(-1).clamp(least, most)
    return Exponentials(gaps, kept, nodes, others, rest, kept.sum(-1) + rest)


def score_compact(logits: CompactLogits, kind: str, temperature: float) -> Tensor:  # (N,C) -> (N,) float32
    """What :func:`~exitlens.functional.scores.score` says of the full logits."""
    return torch.cat([_score(part, kind, temperature) for part in logits.split(ROWS)]).float()


def _score(logits: CompactLogits, kind: str, temperature: float) -> Tensor:
    e = _exponentiate(logits, temperature)
    if kind == "max_probability":
        return 1 / e.total
    if kind == "margin":
        return (e.kept[:, 0] - e.kept[:, 1]) / e.total
    near, far = logits.span.double().unbind(-1)
    distance = (e.kept * e.gaps).sum(-1) + (e.others * e.nodes).sum(-1).clamp(e.rest * near, e.rest * far)
    entropy = distance / (temperature * e.total) + e.total.log()
    return (1 - entropy / math.log(logits.num_classes)).clamp(0, 1)


def compute_probabilities(logits: CompactLogits, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the answer, of the label, and the sum of all squared: ``(N,)`` each; the logits were compressed with labels."""
    found = []
    for part in logits.split(ROWS):
        assert part.label is not None, "compressed with labels"
        e = _exponentiate(part, temperature)
        label = ((part.label.double() - part.top[:, 0].double()) / temperature).exp() / e.total
        square = (e.others * (e.nodes / -temperature).exp()).sum(-1).clamp_min(0).minimum(e.rest.square())
        found.append(torch.stack([1 / e.total, label, (e.kept.square().sum(-1) + square) / e.total.square()], 1))
    answer, label, square = torch.cat(found).float().unbind(1)
    return answer, label, square


def fix_likelihood(logits: CompactLogits) -> Callable[[float], float]:  # (N,C)
    """The mean negative log-likelihood of the labels as a function of the temperature.

    Of many samples the exponentials are in float32: what that loses is random, and the mean over them keeps nine digits.
    """
    assert logits.label is not None, "compressed with labels"
    dtype = torch.float64 if len(logits) <= EXACT else torch.float32
    gaps = (logits.top[:, :1] - logits.top).to(dtype)
    nodes = torch.empty(logits.weights.shape, dtype=dtype)
    for part, out in zip(logits.split(ROWS), nodes.split(ROWS), strict=True):
        out.copy_(part.nodes())
    label, weights = (logits.top[:, 0] - logits.label).double().mean().item(), logits.weights.to(dtype)

    def loss(temperature: float) -> float:
        scale, total = -1 / temperature, 0.0
        for gap, node, weight in zip(gaps.split(ROWS), nodes.split(ROWS), weights.split(ROWS), strict=True):
            others = torch.linalg.vecdot(weight, (node * scale).exp()).clamp_min(0)
            total += ((gap * scale).exp().sum(-1) + others).double().log().sum().item()
        return label / temperature + total / len(gaps)

    return loss


def restore_logits(logits: Logits) -> Tensor:  # (*S,C) -> (*S,C)
    """Logits in full; of compact ones, those that were not kept are all their mean."""
    if not isinstance(logits, CompactLogits):
        return logits
    others = max(1, logits.num_classes - logits.top.shape[-1])
    mean = logits.top[..., 0] - ((logits.weights * logits.nodes()).sum(-1) / others).float()
    return mean[..., None].repeat(*[1] * mean.ndim, logits.num_classes).scatter(-1, logits.classes.long(), logits.top)
