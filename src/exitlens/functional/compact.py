"""Compact logits: compression, hashes of samples, and scores and likelihoods at any temperature, exact to about 1e-7.

With dozens of almost equal classes at the top they are exact to 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.types.inputs import check_labels
from exitlens.types.traces import LARGEST, NODES, CompactLogits, Logits, chebyshev_nodes, scale_distances


def compress(logits: Tensor, labels: Tensor | None = None) -> CompactLogits:  # (*S,C), (S_0,)
    """Compress logits; the labels are one for each row of the first axis."""
    logits, count = logits.float(), logits.shape[-1]
    if labels is not None:
        check_labels(labels, len(logits), count)
    values, order = logits.topk(count if count <= LARGEST else LARGEST + 1, -1)
    kept = min(count, LARGEST)
    top, classes, answers = values[..., :kept], order[..., :kept], logits.argmax(-1, keepdim=True)
    # the answer comes first: of equal logits argmax takes the lowest class, and topk any
    place = (classes == answers).byte().argmax(-1, keepdim=True)  # 0 if it is not among them
    classes = torch.cat([answers, classes.scatter(-1, place, classes[..., :1])[..., 1:]], -1)
    distances = (top[..., :1].double() - logits.double()).scatter(-1, order[..., :kept], math.nan)
    near = top[..., :1] - values[..., kept : kept + 1] if kept < count else torch.zeros_like(top[..., :1])
    far = top[..., :1] - logits.amin(-1, keepdim=True) if kept < count else near
    span = torch.cat([near, far], -1)
    label = None
    if labels is not None:
        at = labels.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
        label = logits.gather(-1, at).squeeze(-1)
    small = torch.int16 if count < 2**15 else torch.int32
    return CompactLogits(top.contiguous(), classes.to(small), label, span, _weigh_nodes(distances, span), count)


def _weigh_nodes(distances: Tensor, span: Tensor) -> Tensor:  # (*S,C) NaN where kept, (*S,2) -> (*S,n)
    """Return weights for sums over nodes: the cosine transform of the distances' Chebyshev moments, by their recurrence."""
    centre, half, shift = scale_distances(span)
    logs = (distances + shift[..., None]).clamp_min(1e-30).log()
    t = (logs - centre[..., None]) / half[..., None].clamp_min(1e-9)
    others = ~t.isnan()
    t = t.nan_to_num(0.0).clamp(-1, 1)
    before, now, moments = others.double(), t, [others.sum(-1).double(), t.sum(-1)]
    for _ in range(NODES - 2):
        before, now = now, torch.addcmul(-before, t, now, value=2)
        moments.append(now.sum(-1))
    orders = torch.arange(NODES, dtype=torch.float64)
    transform = 2 / NODES * (orders[:, None] * chebyshev_nodes(NODES).acos()).cos()
    transform[0] /= 2
    return (torch.stack(moments, -1) @ transform).float()


ROWS = 1 << 12  # computed at once
EXACT = 1 << 17  # samples up to which likelihoods are float64


class Exponentials(NamedTuple):
    """Exponentials ``exp(-x/T)`` of the distances x, for sums over all classes."""

    gaps: Tensor  # (n,m) distances of the largest logits
    kept: Tensor  # (n,m) their exponentials
    nodes: Tensor  # (n,q)
    others: Tensor  # (n,q) the nodes' exponentials times their weights
    rest: Tensor  # (n,) sum of the exponentials of all logits but the largest
    total: Tensor  # (n,) sum of all


def _exponentiate(logits: CompactLogits, temperature: float) -> Exponentials:
    gaps, nodes = logits.top[..., :1].double() - logits.top.double(), logits.nodes()
    kept, others = (gaps / -temperature).exp(), logits.weights * (nodes / -temperature).exp()
    # where interpolation fails (temperatures below 0.01 and dozens of equal classes), the sum keeps within its bounds
    upper, lower = ((logits.num_classes - gaps.shape[-1]) * (logits.span.double() / -temperature).exp()).unbind(-1)
    rest = others.sum(-1).clamp(lower, upper)
    return Exponentials(gaps, kept, nodes, others, rest, kept.sum(-1) + rest)


def score_compact(logits: CompactLogits, kind: str, temperature: float) -> Tensor:  # (N,C) -> (N,) float32
    """Return :func:`~exitlens.functional.scores.score` of the full logits."""
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
    """Return the probabilities ``(N,)`` of answer and label, and the sum of all squared; the logits have labels."""
    columns = []
    for part in logits.split(ROWS):
        assert part.label is not None, "compressed with labels"
        e = _exponentiate(part, temperature)
        label = ((part.label.double() - part.top[:, 0].double()) / temperature).exp() / e.total
        square = (e.others * (e.nodes / -temperature).exp()).sum(-1).clamp_min(0).minimum(e.rest.square())
        columns.append(torch.stack([1 / e.total, label, (e.kept.square().sum(-1) + square) / e.total.square()], 1))
    answer, label, square = torch.cat(columns).float().unbind(1)
    return answer, label, square


def fix_likelihood(logits: CompactLogits) -> Callable[[float], float]:  # (N,C)
    """Return the mean negative log-likelihood of the labels as a function of the temperature (nine digits)."""
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
    """Return full logits; values that compact logits do not keep are replaced by their mean, those of pixels are means."""
    if isinstance(logits, Tensor):
        return logits
    if not isinstance(logits, CompactLogits):
        return logits.first
    others = max(1, logits.num_classes - logits.top.shape[-1])
    mean = logits.top[..., 0] - ((logits.weights * logits.nodes()).sum(-1) / others).float()
    return mean[..., None].repeat(*[1] * mean.ndim, logits.num_classes).scatter(-1, logits.classes.long(), logits.top)
