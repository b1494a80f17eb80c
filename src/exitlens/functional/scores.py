"""Confidence scores of one exit, all in [0, 1] with 1 certain, and the temperature that calibrates it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types import SCORES


def score(logits: Tensor, kind: str = "max_probability", temperature: float = 1.0) -> Tensor:  # (B,C) -> (B,)
    """How certain an exit is, from its logits divided by ``temperature`` (see :func:`score_of`)."""
    return score_of(probabilities(logits, temperature), kind)


def probabilities(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:  # (B,C) -> (B,C)
    """Softmax of ``logits / temperature`` in float32."""
    logits = logits.float()
    if not isinstance(temperature, float) or temperature != 1.0:
        logits = logits / temperature
    return logits.softmax(-1)


def score_of(p: Tensor, kind: str) -> Tensor:  # (...,C) -> (...)
    """``max_probability``; ``entropy``: 1 - H(p)/ln C; ``margin``: largest minus second largest probability."""
    if kind == "max_probability":
        return p.amax(-1)
    if kind == "entropy":
        nats: Tensor = torch.special.xlogy(p, p).sum(-1)
        return (1 + nats / math.log(p.shape[-1])).clamp_min(0)
    if kind == "margin":
        first, second = p.topk(2, -1).values.unbind(-1)
        return first - second
    raise InputError(f"score: expected one of {SCORES}, got {kind!r}")


def fit_temperatures(logits: Tensor, labels: Tensor) -> tuple[float, ...]:  # (N,K,C), (N,)
    """:func:`fit_temperature` of every exit."""
    return tuple(fit_temperature(one, labels) for one in logits.unbind(1))


def fit_temperature(logits: Tensor, labels: Tensor, low: float = 0.05, high: float = 20.0) -> float:
    """The temperature that minimises the negative log-likelihood (arXiv 1706.04599), by golden-section search on log T.

    The likelihood is unimodal in ``log T`` for logits of one exit, so the search needs no gradient and no start value.
    Clipped to ``[low, high]``: separable data would drive it to 0.
    """

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_t), labels).item()

    golden = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    left, right = b - golden * (b - a), a + golden * (b - a)
    at_left, at_right = loss(left), loss(right)
    while b - a > 1e-4:
        if at_left <= at_right:
            b, right, at_right = right, left, at_left
            left = b - golden * (b - a)
            at_left = loss(left)
        else:
            a, left, at_left = left, right, at_right
            right = a + golden * (b - a)
            at_right = loss(right)
    return math.exp((a + b) / 2)
