"""The search for thresholds: the cheapest policy that keeps limits on risks, or the safest within a cost; and paths.

Cost and risk of a routing are sums over samples, so with the other thresholds fixed, the best threshold of an exit follows
exactly from one cumulative sum. Going round the exits until nothing changes gives a local optimum of cost + price * risk;
sweeping the price gives a frontier from the cheapest to the safest policy. Scores are replaced by *levels*, the index of the
interval they fall in (:func:`quantise`), and a policy by a tuple of levels, its *cuts*.

A path leads from the safest thresholds to the cheapest. With folds, every fold is routed by the path of the others.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import ndtr
from torch import Tensor

from exitlens.errors import CalibrationError, InputError
from exitlens.functional.groups import count_groups, shuffle_groups
from exitlens.functional.risk import Budget, Risk, accuracy_drop, disagreement, select_exits
from exitlens.functional.routing import find_first_firing
from exitlens.types import Trace

T = TypeVar("T")
PRICES = 40  # of risk, from one policy of a frontier to the next
FINE_STEPS = 16  # between neighbours on a frontier, if a budget ends between them
STEPS = 8  # from one vector of a frontier to the next, on a path
LEAST = 1e-6  # smallest limit that losses are divided by
Cuts = tuple[float, ...]  # for each early exit a level, or math.inf: never


@dataclass(frozen=True)
class Point:
    """One policy of the frontier, in levels, and its mean cost and risk on the samples it was found on."""

    cuts: Cuts
    cost: float
    risk: float


@dataclass(frozen=True)
class Levels:
    """Scores in levels: ``score >= edges[k][j]`` exactly where ``index[:, k] >= j``; ``edges[k][0]`` is 0 (always).

    The edges increase, halfway between neighbouring scores, so that no rounding difference at run time moves a sample.
    """

    index: Tensor  # (N,K-1) integers
    edges: tuple[Tensor, ...]

    def apply(self, scores: Tensor) -> Tensor:  # (M,K-1) -> (M,K-1)
        """Return the levels of other samples' scores."""
        if not self.edges:
            return torch.empty(len(scores), 0).long()
        columns = zip(self.edges, scores.double().T.contiguous(), strict=True)
        return torch.stack([(torch.searchsorted(e, s, right=True) - 1).clamp_min(0) for e, s in columns]).T

    def thresholds(self, cuts: Cuts) -> tuple[float, ...]:
        """Turn levels back into thresholds on the score."""
        return tuple(math.inf if cut == math.inf else self.edges[k][int(max(cut, 0))].item() for k, cut in enumerate(cuts))


def quantise(scores: Tensor, levels: int = 400) -> Levels:  # (N,K-1)
    """Replace each exit's scores by at most ``levels`` equally filled intervals, with equal scores in the same one."""
    edges = []
    for column in scores.double().T.contiguous():
        ordered = column.unique()
        middles = torch.cat([ordered.new_zeros(1), (ordered[1:] + ordered[:-1]) / 2])
        if len(middles) > levels:
            wanted = column.sort().values[torch.linspace(0, len(column) - 1, levels).long()]
            middles = torch.cat([middles[:1], middles[torch.searchsorted(ordered, wanted).unique()[1:]]])
        edges.append(middles.float().double().unique())  # as scores in float32 are compared with them
    levels_of = Levels(torch.empty(len(scores), 0).long(), tuple(edges))
    return replace(levels_of, index=levels_of.apply(scores))


def evaluate_cuts(index: Tensor, risk: Tensor, cost: Tensor, cuts: Cuts) -> Point:
    """Return mean cost and risk of one policy. Shapes: index (N,K-1), risk (N,K), cost (K,) or (N,K)."""
    exits = find_first_firing(index, cuts)
    return Point(cuts, average_cost(cost, exits), select_exits(risk, exits).double().mean().item())


def average_cost(cost: Tensor, exits: Tensor) -> float:  # (K,) or (N,K), (N,)
    """Return the mean cost of the exits that are taken, the same for all samples or not."""
    return (cost[exits] if cost.ndim == 1 else select_exits(cost, exits)).double().mean().item()


def find_best_cut(index: Tensor, advantage: Tensor) -> float:  # (n,), (n,)
    """Return the level that gains most by answering all samples at or above it here; ``math.inf`` if none gains."""
    total = torch.bincount(index, weights=advantage.double()).flip(0).cumsum(0).flip(0)
    best = int(total.argmax())
    return float(best) if total[best] > 0 else math.inf


def descend(index: Tensor, loss: Tensor, start: Cuts, rounds: int = 8) -> Cuts:
    """Minimise the mean of ``loss`` ``(N,K)`` at the exit taken, by coordinate descent from ``start``."""
    cuts = list(start)
    for _ in range(rounds):
        before = list(cuts)
        for k in reversed(range(len(cuts))):
            reaches = find_first_firing(index[:, :k], cuts[:k]) == k
            later = k + 1 + find_first_firing(index[:, k + 1 :], cuts[k + 1 :])
            cuts[k] = find_best_cut(index[:, k], (select_exits(loss, later) - loss[:, k]) * reaches)
        if cuts == before:
            break
    return tuple(cuts)


def find_frontier(index: Tensor, risk: Tensor, cost: Tensor, prices: int = PRICES) -> list[Point]:
    """Return undominated policies in cost and risk, from cheapest to safest, at some prices of risk.

    Shapes: index ``(N,K-1)`` levels, risk ``(N,K)``, cost ``(K,)`` or ``(N,K)``.
    """
    always, never = (0.0,) * index.shape[1], (math.inf,) * index.shape[1]
    vectors, cuts = dict.fromkeys((always, never)), always
    for price in torch.logspace(-2, 3, prices).tolist():
        cuts = descend(index, cost + price * risk, cuts)
        vectors[cuts] = None
    points = [evaluate_cuts(index, risk, cost, vector) for vector in vectors]
    return keep_undominated(points, lambda p: (p.cost, p.risk))


def keep_undominated(items: Iterable[T], rate: Callable[[T], tuple[float, float]]) -> list[T]:
    """Return the items that no other beats in both numbers of its rate (a cost and a loss), cheapest first."""
    kept: list[T] = []
    for item in sorted(items, key=rate):
        if not kept or rate(item)[1] < rate(kept[-1])[1]:
            kept.append(item)
    return kept


def mix_cuts(left: Cuts, right: Cuts, step: float, tops: Sequence[int]) -> Cuts:
    """Return a policy on the way (``step`` in [0, 1]) from one to another; ``tops``: the highest level of each exit."""
    nevers = [top + 1 for top in tops]  # one level above the highest
    mixed = [round((1 - step) * min(a, n) + step * min(b, n)) for a, b, n in zip(left, right, nevers, strict=True)]
    return tuple(math.inf if value >= n else float(value) for value, n in zip(mixed, nevers, strict=True))


def refine(levels: Levels, risk: Tensor, cost: Tensor, start: Point, allowed: Callable[[Cuts], bool]) -> Point:
    """Lower the cuts of a policy while it stays allowed and gets cheaper, from a corner of the frontier to the limit."""
    best = start
    for _ in range(3):
        before = best
        for k, edges in enumerate(levels.edges):
            top = int(min(best.cuts[k], len(edges)))
            for cut in sorted(top - 2**i for i in range(16) if 2**i <= top):  # closer together near the top
                trial = (*best.cuts[:k], float(cut), *best.cuts[k + 1 :])
                candidate = evaluate_cuts(levels.index, risk, cost, trial)
                if candidate.cost < best.cost and allowed(trial):
                    best = candidate
                    break
        if best == before:
            break
    return best


def find_cheapest(
    levels: Levels, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget] = (), prices: int = PRICES
) -> Point:
    """Find the cheapest policy that keeps every limit and budget, or raise :class:`CalibrationError`."""

    def keeps_risks(cuts: Cuts) -> bool:
        exits = find_first_firing(levels.index, cuts)
        return all(risk.mean(exits) <= risk.limit + 1e-12 for risk in risks)

    columns = [risk.column() for risk in risks if risk.rows is None]
    if len(risks) > 1 or not columns:
        columns.append(torch.stack([risk.column() / max(risk.limit, 1e-3) for risk in risks]).sum(0))
    costs = [cost, *(mixed for budget in budgets for mixed in (cost + budget.prices, 1e-3 * cost + budget.prices))]
    vectors = {
        point.cuts: None for price in costs for risk in columns for point in find_frontier(levels.index, risk, price, prices)
    }
    vectors |= {cuts: None for risk in columns for cuts in _find_truncated(levels, risk, cost, budgets)}
    never, absolute = (math.inf,) * levels.index.shape[1], [risk for risk in risks if risk.is_absolute]
    last = torch.full((len(levels.index),), levels.index.shape[1])
    loses_nothing = all(risk.mean(last) <= risk.limit + 1e-12 for risk in absolute)  # the others are 0 at the final exit
    if not (kept := [*filter(keeps_risks, vectors), *[never] * loses_nothing]):
        raise _refuse(absolute, (), ", not even the final exit")
    for price in costs if budgets else ():  # near the limits only a refined policy may keep the budgets, too
        points = [evaluate_cuts(levels.index, columns[0], price, cuts) for cuts in kept]
        kept.append(refine(levels, columns[0], price, min(points, key=lambda p: p.cost), keeps_risks).cuts)
    points = [evaluate_cuts(levels.index, columns[0], cost, cuts) for cuts in kept if is_within(levels.index, cuts, budgets)]
    if not points:
        raise _refuse(risks, budgets)
    cheapest = min(points, key=lambda p: p.cost)
    return refine(levels, columns[0], cost, cheapest, lambda c: is_within(levels.index, c, budgets) and keeps_risks(c))


def _refuse(risks: Sequence[Risk], budgets: Sequence[Budget], where: str = "", fix: str = "") -> CalibrationError:
    limits, spent = {risk.name: risk.limit for risk in risks}, " and ".join(budget.asked for budget in budgets)
    within = f" within {spent}" if spent else ""
    return CalibrationError(f"limits: no policy found keeps {limits}{where}{within}. Fix: raise one of the limits{fix}.")


def find_safest(levels: Levels, trace: Trace, budgets: Sequence[Budget]) -> Point:
    """Find the policy of least accuracy drop (without labels: disagreement) within the budgets."""
    loss, (first, *others) = default_loss(trace), budgets
    prices = [first.prices, *(item.prices for item in others), *(first.prices + item.prices for item in others)]
    cuts, tops = dict[Cuts, None](), levels.index.amax(0).tolist()
    for price in prices:
        frontier = [point.cuts for point in find_frontier(levels.index, loss, price)]
        cuts |= dict.fromkeys(frontier)
        for item, other in pairwise(frontier):  # the frontier has corners only, with policies between them
            if is_within(levels.index, item, budgets) and not is_within(levels.index, other, budgets):
                cuts |= {mix_cuts(item, other, step / FINE_STEPS, tops): None for step in range(1, FINE_STEPS)}
    cuts |= dict.fromkeys([(0.0,) * (trace.num_exits - 1), *_find_truncated(levels, loss, trace.cost, budgets)])
    points = [evaluate_cuts(levels.index, loss, trace.cost, item) for item in cuts if is_within(levels.index, item, budgets)]
    return min(points, key=lambda p: p.risk)


def _find_truncated(levels: Levels, risk: Tensor, cost: Tensor, budgets: Sequence[Budget]) -> list[Cuts]:
    """Return policies that send no sample beyond an exit, for each budget on the share of samples that go beyond it."""
    vectors = []
    for last in (budget.last_free for budget in budgets if budget.last_free is not None):
        points = find_frontier(levels.index[:, :last], risk[:, : last + 1], cost[: last + 1])
        vectors += [(*point.cuts, *(0.0,) * (levels.index.shape[1] - last)) for point in points]
    return vectors


def is_within(index: Tensor, cuts: Cuts, budgets: Sequence[Budget]) -> bool:  # (N,K-1) levels
    """Return whether a policy keeps the budgets."""
    exits = find_first_firing(index, cuts)
    return all(budget.keeps(exits) for budget in budgets)


def default_loss(trace: Trace) -> Tensor:  # -> (N,K)
    """Return the loss to minimise if only spending is limited: accuracy drop, or disagreement where no accuracy is known."""
    return accuracy_drop(trace) if trace.has_accuracy else disagreement(trace)


@dataclass(frozen=True)
class Candidate:
    """A threshold vector with its mean cost, and the mean, variance and number of each risk's units, on the first part.

    Paths are ordered by ``smoothed_losses``, one for each risk: the mean of its smoothed losses, gains counted as 0, plus
    the share of samples that leave early over the number of units, so that every sample that leaves adds to it.
    """

    cuts: Cuts
    cost: float
    means: tuple[float, ...]
    variances: tuple[float, ...]
    counts: tuple[int, ...]
    smoothed_losses: tuple[float, ...]


def find_candidates(
    index: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget] = ()
) -> list[Candidate]:  # (N,K-1) levels, (K,) or (N,K)
    """Return vectors worth testing that keep the budgets: the frontier of each risk and of their sum, and steps between."""
    smoothed = [smooth_losses(index, risk.column().clamp_min(0)) for risk in risks]
    scaled = torch.stack([losses / max(risk.limit, 1e-3) for losses, risk in zip(smoothed, risks, strict=True)]).sum(0)
    whole = [losses for losses, risk in zip(smoothed, risks, strict=True) if risk.rows is None]
    tops = index.amax(0).tolist()
    vectors: dict[Cuts, None] = {}
    columns = [scaled] if len(risks) == 1 else [*whole, scaled]
    for column, price in product(columns, [cost, *(1e-3 * cost + budget.prices for budget in budgets)]):
        # The frontier lacks never-exit if a cheaper vector loses nothing here. The path starts close to it, so it is added.
        ordered = [*(point.cuts for point in find_frontier(index, column, price)), (math.inf,) * index.shape[1]]
        vectors |= dict.fromkeys(ordered)
        for left, right in pairwise(ordered):
            vectors |= dict.fromkeys(mix_cuts(left, right, step / STEPS, tops) for step in range(1, STEPS))
    for last in (budget.last_free for budget in budgets if budget.last_free is not None):  # no sample goes beyond this exit
        vectors |= dict.fromkeys((*cuts[:last], *(0.0,) * (index.shape[1] - last)) for cuts in list(vectors))
    count, candidates = len(index) if risks[0].groups is None else count_groups(risks[0].groups), []
    for cuts in vectors:
        if all(cut == math.inf for cut in cuts) or not is_within(index, cuts, budgets):
            continue
        exits = find_first_firing(index, cuts)
        units = [risk.units(exits).double() for risk in risks]
        early = (exits < cost.shape[-1] - 1).double().mean().item()
        candidate = Candidate(
            cuts,
            average_cost(cost, exits),
            means=tuple(values.mean().item() if len(values) else 1.0 for values in units),
            variances=tuple(values.var(correction=0).item() if len(values) else 0.0 for values in units),
            counts=tuple(map(len, units)),
            smoothed_losses=tuple(select_exits(loss, exits).double().mean().item() + early / count for loss in smoothed),
        )
        candidates.append(candidate)
    return candidates


def smooth_losses(index: Tensor, column: Tensor) -> Tensor:  # (N,K-1), (N,K) -> (N,K)
    """Replace each early exit's losses by their isotonic mean given the score: single errors then move no thresholds."""
    smoothed = column.clone()
    for k in range(index.shape[1]):
        order = index[:, k].argsort(stable=True)
        fitted = isotonic_regression(column[order, k].double().numpy(), increasing=False).x.copy()
        smoothed[order, k] = torch.as_tensor(fitted, dtype=column.dtype)
    return smoothed


def approximate_p_values(candidate: Candidate, limits: Sequence[float]) -> list[float]:
    """Return a normal p-value for each risk, to order vectors by; 1 / count is added to the variance, which may be 0."""
    rows = zip(candidate.means, candidate.variances, candidate.counts, limits, strict=True)
    return [
        float(ndtr((mean - limit) / math.sqrt((variance + 1 / max(count, 1)) / max(count, 1))))
        for mean, variance, count, limit in rows
    ]


def order_path(pool: Sequence[Candidate], limits: Sequence[float], max_length: int = 60) -> list[Candidate]:
    """Return the candidates that no other beats in both cost and smoothed loss (over its limit), safest first.

    The smoothed loss grows with every sample that leaves, so the path starts next to never-exit and goes on in small steps;
    by risk it would start where gains happen to be largest. Candidates that are likely above their limit are left out.
    """
    likely = [candidate for candidate in pool if max(approximate_p_values(candidate, limits)) < 0.9]
    kept = keep_undominated(likely, lambda candidate: (candidate.cost, _compare_losses(candidate, limits)))
    if len(kept) > max_length:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, max_length).round().astype(int))]
    return kept[::-1]


def _compare_losses(candidate: Candidate, limits: Sequence[float], surplus: float = 0.0) -> float:
    """Return the largest ratio of a smoothed loss, less ``surplus``, to its limit."""
    pairs = zip(candidate.smoothed_losses, limits, strict=True)
    return max((loss - surplus) / max(limit, LEAST) for loss, limit in pairs)


def split_folds(trace: Trace, folds: int, seed: int) -> Tensor:  # -> (N,)
    """Assign every sample to a fold at random, samples of one group to the same one."""
    count, unit = (len(trace), "samples") if trace.groups is None else (trace.num_groups, "groups")
    if folds > count:
        raise InputError(f"folds: got {folds} for {count} {unit}: expected no more than these")
    units = torch.arange(len(trace)) if trace.groups is None else trace.groups
    return shuffle_groups(units, seed) % folds


def choose_by_folds(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], folds: Tensor
) -> tuple[tuple[float, ...], dict[str, float]]:  # (N,K-1), (K,), (N,) of split_folds
    """Choose by cross-validation: the cheapest thresholds that keep the limits on held-out samples, and their mean losses.

    Means of held-out samples are noisy, so a step has to keep the limits with its means, with their isotonic regression over
    all steps, and with the means of all samples. Raises :class:`CalibrationError` if none of these keeps the budgets.
    """
    path, losses = _propose(scores, risks, cost, budgets, len(scores))
    held_out = torch.empty(len(path), len(scores), dtype=torch.int64)  # exits by what the other folds propose
    for fold in folds.unique().tolist():
        held, rest = (where.nonzero()[:, 0] for where in (folds == fold, folds != fold))
        others, limits = _propose(scores[rest], [risk.at(rest) for risk in risks], cost, budgets, len(scores))
        for step, loss in enumerate(losses):
            cheapest = others[bisect_right(limits, loss * (1 + 1e-6)) - 1]  # of those that lose no more, but for rounding
            held_out[step, held] = find_first_firing(scores[held], cheapest)
    means = torch.tensor([[risk.mean(exits) for risk in risks] for exits in held_out], dtype=torch.float64)
    routed = [find_first_firing(scores, thresholds) for thresholds in path]
    kept = torch.tensor([all(budget.keeps(exits) for budget in budgets) for exits in routed])
    for column, risk in zip(means.T, risks, strict=True):
        smooth = torch.as_tensor(isotonic_regression(column.numpy()).x.copy())
        whole = torch.tensor([risk.mean(exits) for exits in routed], dtype=torch.float64)
        kept &= torch.stack([column, smooth, whole]).amax(0) <= risk.limit + 1e-12
    if not kept.any():  # never-exit, where the path starts, loses nothing, but it may take too long
        raise _refuse(risks, budgets, " on held-out samples", ", or leave folds out")
    step = int(kept.nonzero()[-1])
    return path[step], {risk.name: mean for risk, mean in zip(risks, means[step].tolist(), strict=True)}


def _propose(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], count: int
) -> tuple[list[tuple[float, ...]], list[float]]:
    """Return the thresholds that these samples propose within the budgets, from never-exit on, and their smoothed losses.

    The losses add the share of samples that leave early over ``count``, the number of all samples, rather than of these, so
    that paths of different folds can be compared.
    """
    levels = quantise(scores)
    risks = [risk for risk in risks if risk.rows is None or bool(risk.rows.any())]
    limits = [risk.limit for risk in risks]
    path, losses = [(math.inf,) * scores.shape[1]], [-math.inf]
    for step in order_path(find_candidates(levels.index, risks, cost, budgets), limits) if risks else ():
        early = (find_first_firing(levels.index, step.cuts) < len(cost) - 1).double().mean().item()
        surplus = early / len(scores) - early / count
        path.append(levels.thresholds(step.cuts))
        losses.append(max(losses[-1], _compare_losses(step, limits, surplus)))
    return path, losses
