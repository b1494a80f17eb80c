"""Thresholds whose limits hold on samples that did not choose them: cross-validation within the calibration samples.

A search finds what is good on its own samples partly by chance, so new samples lose more than the limit. Here all samples
propose a path of policies from the safest to the cheapest, as for a certificate, and how far one may go on it is decided by
held-out samples: every fold is routed by the path of the others, up to the same smoothed loss.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from exitlens.errors import CalibrationError, InputError
from exitlens.functional.groups import shuffle_groups
from exitlens.functional.risk import Budget, Risk
from exitlens.functional.routing import find_first_firing
from exitlens.functional.thresholds.certification import LEAST, find_candidates, order_path
from exitlens.functional.thresholds.search import quantise
from exitlens.types import Trace


class Path(NamedTuple):
    """Thresholds from the safest to the cheapest, and the smoothed loss of each on the samples that proposed them."""

    thresholds: list[tuple[float, ...]]
    losses: list[float]

    def at(self, loss: float) -> tuple[float, ...]:
        """The cheapest thresholds that lose no more, but for rounding."""
        return self.thresholds[bisect_right(self.losses, loss * (1 + 1e-6)) - 1]


def split_folds(trace: Trace, folds: int, seed: int) -> Tensor:  # -> (N,)
    """The fold of every sample, at random; samples of one group are in the same.

    Raises:
        InputError: for more folds than samples (or groups).
    """
    count, what = (len(trace), "samples") if trace.groups is None else (trace.num_groups, "groups")
    if folds > count:
        raise InputError(f"folds: got {folds} for {count} {what}: expected no more than these")
    units = torch.arange(len(trace)) if trace.groups is None else trace.groups
    return shuffle_groups(units, seed) % folds


def find_held_out(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], folds: Tensor
) -> tuple[tuple[float, ...], dict[str, float]]:
    """The cheapest thresholds of the path under which held-out samples keep the limits, and by name what these lose.

    Means of held-out samples along the path are noisy; one step counts as kept if its means and their isotonic regression
    over all steps are within the limits, and the means of all samples, too.

    Args:
        scores: ``(N,K-1)`` of the early exits.
        cost: ``(K,)``. folds: ``(N,)`` from :func:`split_folds`.

    Raises:
        CalibrationError: where no step keeps the budgets, too.
    """
    path = _propose(scores, risks, cost, budgets, len(scores))
    means = _lose_held_out(path, scores, risks, cost, budgets, folds)  # (steps, risks)
    routed = [find_first_firing(scores, thresholds) for thresholds in path.thresholds]
    kept = torch.tensor([all(budget.keeps(exits) for budget in budgets) for exits in routed])
    for column, risk in zip(means.T, risks, strict=True):
        smooth = isotonic_regression(column.numpy()).x.copy()
        own = torch.tensor([risk.mean(exits) for exits in routed], dtype=torch.float64)
        kept &= torch.stack([column, torch.as_tensor(smooth), own]).amax(0) <= risk.limit + 1e-12
    if not kept.any():  # never-exit, where the path starts, loses nothing, but it may take too long
        limits, spent = {risk.name: risk.limit for risk in risks}, " and ".join(budget.asked for budget in budgets)
        raise CalibrationError(
            f"limits: no policy found keeps {limits} on held-out samples within {spent}: raise one of the limits, or leave "
            "folds out"
        )
    step = int(kept.nonzero()[-1])
    return path.thresholds[step], {risk.name: mean for risk, mean in zip(risks, means[step].tolist(), strict=True)}


def _lose_held_out(
    path: Path, scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], folds: Tensor
) -> Tensor:  # -> (steps, risks) float64
    """At every step of the path, the risks of samples routed by what the other folds propose."""
    exits = torch.empty(len(path.losses), len(scores), dtype=torch.int64)
    for fold in folds.unique().tolist():
        held, rest = (where.nonzero()[:, 0] for where in (folds == fold, folds != fold))
        theirs = _propose(scores[rest], [risk.at(rest) for risk in risks], cost, budgets, len(scores))
        for step, loss in enumerate(path.losses):
            exits[step, held] = find_first_firing(scores[held], theirs.at(loss))
    return torch.tensor([[risk.mean(one) for risk in risks] for one in exits], dtype=torch.float64)


def _propose(scores: Tensor, risks: Sequence[Risk], cost: Tensor, budgets: Sequence[Budget], count: int) -> Path:
    """The path of these samples within the budgets; it starts with never-exit, which need not keep them.

    Limits on classes that none of the samples has are left out. A smoothed loss counts the share of samples that leave early
    as one more sample: of ``count``, so that the paths of parts compare with that of the whole.
    """
    levels = quantise(scores)
    there = [risk for risk in risks if risk.rows is None or bool(risk.rows.any())]
    limits = [risk.limit for risk in there]
    path = Path([(math.inf,) * scores.shape[1]], [-math.inf])
    for one in order_path(find_candidates(levels.index, there, cost, budgets), limits) if there else ():
        early = (find_first_firing(levels.index, one.cuts) < len(cost) - 1).double().mean().item()
        less = early / len(scores) - early / count
        loss = max((h - less) / max(limit, LEAST) for h, limit in zip(one.smoothed_losses, limits, strict=True))
        path.thresholds.append(levels.thresholds(one.cuts))
        path.losses.append(max(path.losses[-1], loss))
    return path
