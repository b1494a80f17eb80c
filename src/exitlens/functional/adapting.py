"""The mathematics of thresholds that adapt: how many losses nobody saw, whom to audit, and where thresholds go."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from exitlens.functional.risk import Risk, select_exits
from exitlens.functional.routing import find_first_firing
from exitlens.functional.search import PRICES, find_cheapest, quantise

LEAST = 200  # samples by which thresholds are chosen, at least
# Page's test looks for losses this many times as frequent as expected, and alarms at this logarithm of the likelihood ratio
WORSE, SURE = 5.0, 5.3
OTHER = 4.0  # standard errors between the losses of late and before, beyond which what was before is forgotten
LEVELS = 50  # of scores, between which thresholds are


def charge_audit(chance: float, bet: float) -> float:
    """Return what an audited loss of 1 is charged, where audits had this chance.

    With L the loss of an early answer in [0, 1], and A whether it was audited, ``exp(bet (1 - A) L - charge A L)`` has a
    mean of at most 1: it is convex in L, 1 for L = 0, and for L = 1 the charge makes it so. Chances may depend on all that
    is known before the coin is tossed. So the product over all early answers is a supermartingale, and with probability
    1 - delta, at every moment, the losses that nobody audited add up to at most :func:`bound_losses` of the charges (Ville
    1939; testing by betting, arXiv 2210.01948).

    The charge is infinite for chances below ``1 - exp(-bet)``.
    """
    rest = chance * math.exp(bet) - math.expm1(bet)
    return max(0.0, -math.log(rest / chance)) if rest > 0 else math.inf


def bound_losses(charges: float, bet: float, delta: float) -> float:
    """Return the bound on the sum of losses that nobody audited, from the charges of those that were."""
    return (charges - math.log(delta)) / bet


def add_evidence(evidence: float, loss: float, expected: float) -> float:
    """Return the evidence that losses come faster than expected, after another audit; infinite: surely (Page 1954).

    A loss between 0 and 1 counts as a share of both.
    """
    expected = min(expected, 0.99)
    more = min((1 + expected) / 2, WORSE * expected)
    ratio = loss * math.log(more / expected) + (1 - loss) * math.log((1 - more) / (1 - expected))
    evidence = max(0.0, evidence + ratio)
    return evidence if evidence <= SURE else math.inf


def select_losses(losses: Tensor, exits: Tensor) -> Tensor:  # (n,K-1), (n,) -> (n,)
    """Return the losses at the exits that samples take: 0 at the final one, 1 where one is no number."""
    return select_exits(functional.pad(losses, (0, 1)), exits).nan_to_num(1.0)


def average(values: Tensor, weights: Tensor) -> float:  # (n,), (n,)
    """Return a weighted mean."""
    return ((values * weights).sum() / weights.sum()).item()


def count_effective(weights: Tensor) -> float:  # (n,)
    """Return the number of equally weighted values that tell a mean as well (Kish 1965)."""
    return (weights.sum() ** 2 / (weights**2).sum()).item()


def count_alike(losses: Tensor, weights: Tensor) -> int:  # (n,K-1), (n,), in their order
    """Return how many of the last samples are alike: all of them, or few if exit 0 has become better or worse."""
    if len(losses) < 2 * LEAST:
        return len(losses)
    share, parts = average(losses[:, 0], weights), (slice(None, -LEAST), slice(-LEAST, None))
    before, late = (average(losses[part, 0], weights[part]) for part in parts)
    error = math.sqrt(share * (1 - share) * sum(1 / count_effective(weights[part]) for part in parts))
    return LEAST if abs(before - late) > OTHER * error else len(losses)


def choose_thresholds(
    scores: Tensor,
    losses: Tensor,
    cost: Tensor,
    risk: float,
    weights: Tensor,
    levels: int = LEVELS,
    prices: int = PRICES,
) -> tuple[float, ...]:
    """Return the cheapest thresholds whose mean loss on these samples is at most ``risk``.

    Shapes: scores and losses ``(n,K-1)``, cost ``(K,)``, weights ``(n,)``. Thresholds lie
    between so many levels of scores, and are looked for at so many prices of losses.
    """
    weighed = (weights / weights.mean())[:, None]
    quantised = quantise(scores, levels)
    limited = Risk("losses", functional.pad(losses, (0, 1)) * weighed, max(0.0, risk), "unit")
    return quantised.thresholds(find_cheapest(quantised, [limited], cost * weighed, prices=prices).cuts)


def find_doubt(scores: Tensor, thresholds: tuple[float, ...], weights: Tensor, share: float) -> float:  # (n,K-1), (n,)
    """Return how far above its threshold a score is in this share of the early answers; infinite if there are none."""
    exits = find_first_firing(scores, thresholds)
    early = exits < scores.shape[1]
    above, order = select_exits(scores[early] - torch.tensor(thresholds), exits[early]).sort()
    passed = weights[early][order].cumsum(0)
    return above[passed >= share * passed[-1]][0].item() if len(above) else math.inf
