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
from exitlens.functional.grouping.groups import shuffle_groups
from exitlens.functional.risk import Budget, Risk
from exitlens.functional.routing import find_first_firing
from exitlens.functional.thresholds.certification import find_candidates, order_path
from exitlens.functional.thresholds.search import quantise
from exitlens.types import Trace

LEAST = 1e-6  # of a limit, where losses are over it


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
    over all steps are within the limits.

    Args:
        scores: ``(N,K-1)`` of the early exits.
        cost: ``(K,)``. folds: ``(N,)`` from :func:`split_folds`.

    Raises:
        CalibrationError: where that costs more than a budget.
    """
    path = _propose(scores, risks, cost, len(scores))
    means = _lose_held_out(path, scores, risks, cost, folds)  # (steps, risks)
    kept = torch.ones(len(means), dtype=torch.bool)
    for column, risk in zip(means.T, risks, strict=True):
        smooth = torch.as_tensor(isotonic_regression(column.numpy()).x.copy())
        kept &= (column <= risk.limit + 1e-12) & (smooth <= risk.limit + 1e-12)
    step = int(kept.nonzero()[-1])  # never-exit, where the path starts, loses nothing
    exits = find_first_firing(scores, path.thresholds[step])
    if spent := [budget.asked for budget in budgets if not budget.keeps(exits)]:
        limits = {risk.name: risk.limit for risk in risks}
        raise CalibrationError(
            f"limits: no policy found keeps {limits} on samples that did not choose it within {' and '.join(spent)}: raise "
            "one of the limits, or leave folds out"
        )
    return path.thresholds[step], {risk.name: mean for risk, mean in zip(risks, means[step].tolist(), strict=True)}


def _lose_held_out(path: Path, scores: Tensor, risks: Sequence[Risk], cost: Tensor, folds: Tensor) -> Tensor:
    """At every step of the path, the risks of samples routed by what the other folds propose: (steps, risks) float64."""
    exits = torch.empty(len(path.losses), len(scores), dtype=torch.int64)
    for fold in folds.unique().tolist():
        held, rest = (where.nonzero()[:, 0] for where in (folds == fold, folds != fold))
        theirs = _propose(scores[rest], [risk.at(rest) for risk in risks], cost, len(scores))
        for step, loss in enumerate(path.losses):
            exits[step, held] = find_first_firing(scores[held], theirs.at(loss))
    return torch.tensor([[risk.mean(one) for risk in risks] for one in exits], dtype=torch.float64)


def _propose(scores: Tensor, risks: Sequence[Risk], cost: Tensor, count: int) -> Path:
    """The path of these samples; it starts with never-exit. Limits on classes that none of them has are left out.

    A smoothed loss counts the share of samples that leave early as one more sample: of ``count``, so that the paths of parts
    compare with that of the whole.
    """
    levels = quantise(scores)
    there = [risk for risk in risks if risk.rows is None or bool(risk.rows.any())]
    limits = [risk.limit for risk in there]
    path = Path([(math.inf,) * scores.shape[1]], [-math.inf])
    for one in order_path(find_candidates(levels.index, there, cost), limits) if there else ():
        early = (find_first_firing(levels.index, one.cuts) < len(cost) - 1).double().mean().item()
        less = early / len(scores) - early / count
        loss = max((h - less) / max(limit, LEAST) for h, limit in zip(one.smoothed_losses, limits, strict=True))
        path.thresholds.append(levels.thresholds(one.cuts))
        path.losses.append(max(path.losses[-1], loss))
    return path
