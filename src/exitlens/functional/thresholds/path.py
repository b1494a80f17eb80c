"""The path of threshold vectors from the safest to the cheapest, and the step that held-out samples allow on it.

A certificate tests the path on samples that did not propose it. With folds, all samples propose it, and every fold is routed
by the path of the others, up to the same smoothed loss.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import ndtr
from torch import Tensor

from exitlens.errors import CalibrationError, InputError
from exitlens.functional.groups import count_groups, shuffle_groups
from exitlens.functional.risk import Budget, Risk, select_exits
from exitlens.functional.routing import find_first_firing
from exitlens.functional.thresholds.search import Cuts, average_cost, find_frontier, is_within, mix_cuts, quantise
from exitlens.types import Trace

STEPS = 8  # from one vector of the frontier to the next
LEAST = 1e-6  # smallest limit that losses are divided by


@dataclass(frozen=True)
class Candidate:
    """A threshold vector with its mean cost, and the mean, variance and number of each risk's units, on the first part.

    ``smoothed_losses`` are the means of the losses above 0 after :func:`smooth_losses`: gains do not make up for losses. The
    share of samples that leave early counts as the loss of one more unit, so that of two vectors without any loss the safer
    is the one that lets fewer samples leave.
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
    """Return vectors worth testing that keep the budgets: the frontiers of each risk and their sum, with steps between."""
    smoothed = [smooth_losses(index, risk.column().clamp_min(0)) for risk in risks]
    scaled = torch.stack([losses / max(risk.limit, 1e-3) for losses, risk in zip(smoothed, risks, strict=True)]).sum(0)
    whole = [losses for losses, risk in zip(smoothed, risks, strict=True) if risk.rows is None]
    tops = index.amax(0).tolist()
    vectors: dict[Cuts, None] = {}
    columns = [scaled] if len(risks) == 1 else [*whole, scaled]
    for column, price in product(columns, [cost, *(1e-3 * cost + budget.prices for budget in budgets)]):
        # never-exit is beaten by whatever loses nothing here, but the path has to start next to it
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
    """Return normal p-values of each risk, to order vectors by, with the variance of one more loss."""
    rows = zip(candidate.means, candidate.variances, candidate.counts, limits, strict=True)
    return [
        float(ndtr((mean - limit) / math.sqrt((variance + 1 / max(count, 1)) / max(count, 1))))
        for mean, variance, count, limit in rows
    ]


def order_path(pool: Sequence[Candidate], limits: Sequence[float], most: int = 60) -> list[Candidate]:
    """Return the candidates that no other beats in both cost and smoothed loss (over its limit), safest first.

    The smoothed loss grows with every sample that leaves, so the path starts next to never-exit and goes on in small steps;
    by risk it would start where gains happen to be largest. Candidates that are likely above their limit are left out.
    """
    likely = [i for i, candidate in enumerate(pool) if max(approximate_p_values(candidate, limits)) < 0.9]
    loss = {i: max(h / max(limit, LEAST) for h, limit in zip(pool[i].smoothed_losses, limits, strict=True)) for i in likely}
    kept: list[int] = []
    for i in sorted(likely, key=lambda i: (pool[i].cost, loss[i])):  # cheapest first
        if not kept or loss[i] < loss[kept[-1]]:
            kept.append(i)
    if len(kept) > most:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [pool[i] for i in reversed(kept)]


class ThresholdPath(NamedTuple):
    """Thresholds from the safest to the cheapest, and the smoothed loss of each on the samples that proposed them."""

    thresholds: list[tuple[float, ...]]
    losses: list[float]

    def at(self, loss: float) -> tuple[float, ...]:
        """Return the cheapest thresholds that lose no more, apart from rounding."""
        return self.thresholds[bisect_right(self.losses, loss * (1 + 1e-6)) - 1]


def split_folds(trace: Trace, folds: int, seed: int) -> Tensor:  # -> (N,)
    """Return the fold of every sample, at random; samples of one group are in the same."""
    count, unit = (len(trace), "samples") if trace.groups is None else (trace.num_groups, "groups")
    if folds > count:
        raise InputError(f"folds: got {folds} for {count} {unit}: expected no more than these")
    units = torch.arange(len(trace)) if trace.groups is None else trace.groups
    return shuffle_groups(units, seed) % folds


def find_held_out(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], folds: Tensor
) -> tuple[tuple[float, ...], dict[str, float]]:  # (N,K-1), (K,), (N,) of split_folds
    """Return the cheapest thresholds of the path that keep the limits on held-out samples, and their mean losses by name.

    Means of held-out samples are noisy, so a step has to keep the limits with its means, with their isotonic regression over
    all steps, and with the means of all samples. Raises :class:`CalibrationError` if none of these keeps the budgets.
    """
    path = _propose(scores, risks, cost, budgets, len(scores))
    held_out = torch.empty(len(path.losses), len(scores), dtype=torch.int64)  # exits by what the other folds propose
    for fold in folds.unique().tolist():
        held, rest = (where.nonzero()[:, 0] for where in (folds == fold, folds != fold))
        others = _propose(scores[rest], [risk.at(rest) for risk in risks], cost, budgets, len(scores))
        for step, loss in enumerate(path.losses):
            held_out[step, held] = find_first_firing(scores[held], others.at(loss))
    means = torch.tensor([[risk.mean(exits) for risk in risks] for exits in held_out], dtype=torch.float64)
    routed = [find_first_firing(scores, thresholds) for thresholds in path.thresholds]
    kept = torch.tensor([all(budget.keeps(exits) for budget in budgets) for exits in routed])
    for column, risk in zip(means.T, risks, strict=True):
        smooth = torch.as_tensor(isotonic_regression(column.numpy()).x.copy())
        whole = torch.tensor([risk.mean(exits) for exits in routed], dtype=torch.float64)
        kept &= torch.stack([column, smooth, whole]).amax(0) <= risk.limit + 1e-12
    if not kept.any():  # never-exit, where the path starts, loses nothing, but it may take too long
        limits, spent = {risk.name: risk.limit for risk in risks}, " and ".join(budget.asked for budget in budgets)
        raise CalibrationError(
            f"limits: no policy found keeps {limits} on held-out samples within {spent}: raise one of the limits, or leave "
            "folds out"
        )
    step = int(kept.nonzero()[-1])
    return path.thresholds[step], {risk.name: mean for risk, mean in zip(risks, means[step].tolist(), strict=True)}


def _propose(scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], count: int) -> ThresholdPath:
    """Return the path of these samples within the budgets, from never-exit; early exits count as one more of ``count``."""
    levels = quantise(scores)
    risks = [risk for risk in risks if risk.rows is None or bool(risk.rows.any())]
    limits = [risk.limit for risk in risks]
    path = ThresholdPath([(math.inf,) * scores.shape[1]], [-math.inf])
    for step in order_path(find_candidates(levels.index, risks, cost, budgets), limits) if risks else ():
        early = (find_first_firing(levels.index, step.cuts) < len(cost) - 1).double().mean().item()
        surplus = early / len(scores) - early / count
        loss = max((h - surplus) / max(limit, LEAST) for h, limit in zip(step.smoothed_losses, limits, strict=True))
        path.thresholds.append(levels.thresholds(step.cuts))
        path.losses.append(max(path.losses[-1], loss))
    return path
