"""Risks per sample at every exit, and their mean under a routing."""

from __future__ import annotations

import math

from torch import Tensor

from exitlens.types import Trace


def predictions(trace: Trace) -> Tensor:  # -> (N,K)
    """The class each exit answers (a temperature never changes it)."""
    return trace.logits.argmax(-1)


def accuracy_drop(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[exit wrong] - 1[final wrong]``, in {-1, 0, 1}; its mean is the accuracy lost by answering at that exit."""
    labels = trace.require_labels("accuracy_drop")
    wrong = (predictions(trace) != labels[:, None]).float()
    return wrong - wrong[:, -1:]


def disagreement(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[answer differs from the final exit's]``; needs no labels."""
    answers = predictions(trace)
    return (answers != answers[:, -1:]).float()


def taken(values: Tensor, exits: Tensor) -> Tensor:  # (N,K), (N,) -> (N,)
    """The value of every sample at the exit it takes."""
    return values.gather(1, exits[:, None]).squeeze(1)


def binomial_upper(errors: int, count: int, level: float) -> float:
    """The exact upper confidence bound of a rate (Clopper and Pearson, 1934): the rate at which so few errors are that rare.

    Args:
        errors: seen in ``count`` draws.
        count: 1 or more.
        level: probability that the bound is too low, such as 0.05.
    """

    def at_most(rate: float) -> float:  # P(X <= errors)
        log = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(errors + 1)]
        terms = (c + k * math.log(rate) + (count - k) * math.log1p(-rate) for k, c in enumerate(log))
        return math.fsum(map(math.exp, terms))

    if errors >= count:
        return 1.0
    low, high = errors / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > level else (low, middle)
    return high
