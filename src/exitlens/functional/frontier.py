"""The frontier of threshold vectors: for each price of risk, the thresholds that minimise cost + price * risk.

Cost and risk of a routing are sums over samples of what each sample costs and risks at the exit it takes. With the other
thresholds fixed, the best threshold of one exit is therefore found exactly, by sorting the samples that reach it by
score and looking at one cumulative sum; going round the exits until nothing changes gives a local optimum for that price,
and sweeping the price gives the path from the cheapest to the safest policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.functional.routing import first_firing
from exitlens.functional.risk import taken


@dataclass(frozen=True)
class Point:
    """One policy of the frontier and its mean cost and risk on the samples it was found on."""

    thresholds: tuple[float, ...]
    cost: float
    risk: float


def evaluate_thresholds(scores: Tensor, risk: Tensor, cost: Tensor, thresholds: Sequence[float]) -> Point:
    """Mean cost and risk of one threshold vector. Shapes: scores (N,K-1), risk (N,K), cost (K,)."""
    exits = first_firing(scores, thresholds)
    return Point(tuple(thresholds), cost[exits].double().mean().item(), taken(risk, exits).double().mean().item())


def best_threshold(scores: Tensor, advantage: Tensor) -> float:
    """The threshold that maximises the sum of ``advantage`` over the samples with ``score >= threshold``.

    Args:
        scores: ``(n,)`` of the samples that reach the exit.
        advantage: ``(n,)`` what is gained (or lost, negative) if the sample is answered here.

    Returns:
        The midpoint between the lowest score that fires and the next one below it, so that a rounding difference at run
        time moves no sample; ``math.inf`` if firing never gains.
    """
    if len(scores) == 0:
        return math.inf
    ordered, index = scores.sort(descending=True)
    total = advantage[index].double().cumsum(0)
    is_last_of_ties = torch.ones(len(ordered), dtype=torch.bool)
    is_last_of_ties[:-1] = ordered[:-1] > ordered[1:]
    total[~is_last_of_ties] = -math.inf
    best = int(total.argmax())
    if total[best] <= 0:
        return math.inf
    if best == len(ordered) - 1:
        return ordered[best].item()
    return (ordered[best].double() + ordered[best + 1].double()).item() / 2


def descend(
    scores: Tensor, risk: Tensor, cost: Tensor, price: float, start: Sequence[float], rounds: int = 8
) -> tuple[float, ...]:
    """Coordinate descent on ``cost + price * risk`` from ``start``; see the module's text."""
    thresholds = list(start)
    loss = cost[None].double() + price * risk.double()  # (N,K)
    for _ in range(rounds):
        before = list(thresholds)
        for k in reversed(range(len(thresholds))):
            reaches = first_firing(scores[:, :k], thresholds[:k]) == k
            later = k + 1 + first_firing(scores[reaches, k + 1 :], thresholds[k + 1 :])
            advantage = taken(loss[reaches], later) - loss[reaches, k]
            thresholds[k] = best_threshold(scores[reaches, k], advantage)
        if thresholds == before:
            break
    return tuple(thresholds)


def frontier(scores: Tensor, risk: Tensor, cost: Tensor, prices: int = 40) -> list[Point]:
    """Policies that no other found one beats in both cost and risk, from cheapest to safest (never-exit included).

    Args:
        scores: ``(N,K-1)``.
        risk: ``(N,K)``, one number per sample and exit.
        cost: ``(K,)``.
        prices: how many prices of risk are tried, log-spaced.
    """
    never = (math.inf,) * scores.shape[1]
    found = {never: evaluate_thresholds(scores, risk, cost, never)}
    start: Sequence[float] = (-math.inf,) * scores.shape[1]
    for price in torch.logspace(-2, 3, prices).tolist():
        for origin in (start, never):
            thresholds = descend(scores, risk, cost, price, origin)
            found[thresholds] = evaluate_thresholds(scores, risk, cost, thresholds)
            start = thresholds if origin is start else start
    return pareto(found.values())


def pareto(points: Iterator[Point] | Sequence[Point] | object) -> list[Point]:
    """The points that are not beaten in both cost and risk, sorted by cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.risk)):  # type: ignore[call-overload]
        if not kept or point.risk < kept[-1].risk:
            kept.append(point)
    return kept


def refine(scores: Tensor, risk: Tensor, cost: Tensor, point: Point, max_risk: float, steps: int = 24) -> Point:
    """Lowers thresholds of an allowed policy one at a time while the risk stays allowed: closes the frontier's gaps."""
    best = point
    for _ in range(3):
        before = best
        for k in range(len(best.thresholds)):
            ordered = scores[:, k].unique()
            high = int(torch.searchsorted(ordered, torch.tensor(min(best.thresholds[k], 2.0))))
            for low in torch.linspace(0, high, steps).long().unique().tolist():
                if low >= len(ordered):
                    continue
                trial = (*best.thresholds[:k], ordered[low].item(), *best.thresholds[k + 1 :])
                candidate = evaluate_thresholds(scores, risk, cost, trial)
                if candidate.risk <= max_risk and candidate.cost < best.cost:
                    best = candidate
                    break
        if best == before:
            return best
    return best
