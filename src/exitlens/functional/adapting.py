"""The mathematics of thresholds that adapt: how many audited losses end early answers, and where thresholds go."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from scipy.special import nbdtrc
from torch import Tensor

from exitlens.functional.risk import Risk
from exitlens.functional.search import find_cheapest, quantise

LEAST = 200  # samples by which thresholds are chosen, at least
WORSE, SURE = 5.0, 5.3  # an alarm tells the limit from so many times as much, at this logarithm of the likelihood ratio
OTHER = 4.0  # standard errors between the shares of losses of late and before, beyond which what was before is forgotten
LEVELS = 50  # of scores, between which thresholds are


def find_most(limit: float, window: int, audit: float, delta: float) -> int:
    """Return the largest r for which early answers that stop at the r-th audited loss of a window keep the limit.

    With probability 1 - delta the first m windows together have no more than ``m * limit * window`` losses that nobody
    audited, for every m. They have no more than the number of failures before the (m r)-th success, in independent trials
    that succeed with probability ``audit`` (a negative binomial distribution); the chances of more are added up over m.
    """
    allowed = math.floor(limit * window)
    return bisect_left(range(1, allowed + 2), True, key=lambda most: _chance_of_more(allowed, most, audit, delta) > delta)


def _chance_of_more(allowed: int, most: int, audit: float, delta: float) -> float:
    total, windows, chance = 0.0, 0, 1.0
    while chance > 1e-4 * delta and total <= delta:
        windows += 1
        chance = float(nbdtrc(windows * allowed, windows * most, audit))
        total += chance
    return total


def add_evidence(evidence: float, is_lost: bool, limit: float) -> float:
    """Return the evidence that losses come faster than the limit, after another audit; infinite: surely (Page 1954)."""
    more = min((1 + limit) / 2, WORSE * limit)
    ratio = math.log(more / limit) if is_lost else math.log((1 - more) / (1 - limit))
    evidence = max(0.0, evidence + ratio)
    return evidence if evidence <= SURE else math.inf


def count_alike(losses: Tensor) -> int:  # (n,K-1), in their order
    """Return how many of the last samples are alike: all of them, or few if exit 0 has become better or worse."""
    before, late = losses[:-LEAST, 0], losses[-LEAST:, 0]
    if len(before) < LEAST:
        return len(losses)
    share = losses[:, 0].mean()
    error = (share * (1 - share) * (1 / len(before) + 1 / len(late))).sqrt()
    return LEAST if (before.mean() - late.mean()).abs() > OTHER * error else len(losses)


def choose_thresholds(scores: Tensor, losses: Tensor, cost: Tensor, risk: float) -> tuple[float, ...]:
    """Return the cheapest thresholds whose mean loss on these samples is at most ``risk``, with one more loss to be safe.

    Shapes: scores and losses ``(n,K-1)``, cost ``(K,)``.
    """
    count = len(scores)
    every = torch.cat([losses, torch.zeros(count, 1)], 1)
    levels = quantise(scores, LEVELS)
    best = find_cheapest(levels, [Risk("max_disagreement", every, max(0.0, risk - 1 / count), "binary")], cost)
    return levels.thresholds(best.cuts)
