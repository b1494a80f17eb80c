"""The mathematics of thresholds that adapt: how many audited losses end early answers, and where thresholds go."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import torch
from scipy.special import nbdtrc
from torch import Tensor
from torch.nn import functional

from exitlens.functional.risk import Risk, select_exits
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


def find_largest_sum(limit: float, window: int, audit: float, delta: float) -> float:
    """Return the same for losses in [0, 1]: early answers stop before a window's audited losses add up to more than this.

    With U and A the sums of losses that nobody audited and that were audited, ``exp(b U - a A)`` is a supermartingale for
    a > 0 and ``b = log((1 - p exp(-a)) / (1 - p))``, with p the audited share: the factor of a loss is convex in it, and 1
    for 0 and at most 1 for 1. So ``U <= (a A - log(delta)) / b`` at every moment with probability 1 - delta (Ville 1939).
    The sum is negative if for no a that is within the limit.
    """
    a = np.geomspace(1e-3, 10, 2000)
    b = np.log((1 - audit * np.exp(-a)) / (1 - audit))
    return float(((b * limit * window + math.log(delta)) / a).max())


def _chance_of_more(allowed: int, most: int, audit: float, delta: float) -> float:
    total, windows, chance = 0.0, 0, 1.0
    while chance > 1e-4 * delta and total <= delta:
        windows += 1
        chance = float(nbdtrc(windows * allowed, windows * most, audit))
        total += chance
    return total


def add_evidence(evidence: float, loss: float, limit: float) -> float:
    """Return the evidence that losses come faster than the limit, after another audit; infinite: surely (Page 1954).

    A loss between 0 and 1 counts as a share of both.
    """
    more = min((1 + limit) / 2, WORSE * limit)
    ratio = loss * math.log(more / limit) + (1 - loss) * math.log((1 - more) / (1 - limit))
    evidence = max(0.0, evidence + ratio)
    return evidence if evidence <= SURE else math.inf


def select_losses(losses: Tensor, exits: Tensor) -> Tensor:  # (n,K-1), (n,) -> (n,)
    """Return the losses at the exits that samples take: 0 at the final one, 1 where one is no number."""
    return select_exits(functional.pad(losses, (0, 1)), exits).nan_to_num(1.0)


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
    best = find_cheapest(levels, [Risk("losses", every, max(0.0, risk - 1 / count), "unit")], cost)
    return levels.thresholds(best.cuts)
