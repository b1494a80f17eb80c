"""Certified thresholds: one part of a trace proposes a path of threshold vectors, the other part tests it.

Pareto Testing (arXiv 2210.07913). The first part decides everything that may be decided freely: which vectors are worth
testing, in which order, by which tests. The second part is used once, for a fixed-sequence test along the path. Each null
hypothesis is "some risk is above its limit", with the largest of the risks' p-values; so the probability that a vector with
a risk above its limit is accepted is at most delta, however many risks and vectors there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import ndtr, ndtri
from torch import Tensor

from exitlens.functional.groups import count_groups
from exitlens.functional.risk import Budget, Risk, select_exits
from exitlens.functional.routing import find_first_firing
from exitlens.functional.thresholds.pvalues import (
    SAFE,
    SPARE,
    betting,
    binomial,
    group_betting,
    hoeffding_bentkus,
    paired,
)
from exitlens.functional.thresholds.search import Cuts, average_cost, find_frontier, is_within, mix_cuts, quantise
from exitlens.types.calibrations import Certification, RiskTest

Test = Literal["binomial", "paired", "hoeffding_bentkus", "betting", "group_betting", "signed_betting"]
TESTS: dict[str, tuple[Test, ...]] = {  # by what the losses are
    "binary": ("binomial",),
    "ternary": ("paired", "betting"),
    "unit": ("hoeffding_bentkus", "betting"),
    "signed": ("signed_betting", "betting"),
}
STEPS = 8  # from one vector of the frontier to the next
PATH_SHARE = 0.4  # of the samples propose the path; the others test it (docs/concepts/guarantees.md)
LEAST = 1e-6  # of a limit, where losses are over it
FEWEST = 10  # samples to start from; what so few can certify is nothing, and the policy says how many it takes


class SequenceResult(NamedTuple):
    """What the fixed-sequence test accepted; where nothing passed, no ``cuts``, and ``tests`` of the first vector."""

    cuts: Cuts | None
    tests: tuple[RiskTest, ...]
    steps: int


@dataclass(frozen=True)
class Candidate:
    """A threshold vector with its mean cost on the first part, and mean, variance and number of each risk's units there.

    ``smoothed_losses`` are the means of the losses above 0 after :func:`smooth_losses`: gains do not make up for losses. The
    share of samples that leave early counts as the loss of one more unit, so that of two vectors without any loss the one
    that lets fewer samples leave is the safer.
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
    """Threshold vectors worth testing: frontiers of the first part's risks and of their sum, with steps between neighbours.

    Never-exit, which needs no test, is left out. With budgets there are frontiers of their prices, too, and only what keeps
    them.
    """
    smoothed_losses = [smooth_losses(index, risk.column().clamp_min(0)) for risk in risks]
    pairs = list(zip(smoothed_losses, risks, strict=True))
    whole = [losses for losses, risk in pairs if risk.rows is None]
    scaled = torch.stack([losses / max(risk.limit, 1e-3) for losses, risk in pairs]).sum(0)
    tops = index.amax(0).tolist()
    found: dict[Cuts, None] = {}
    columns = [scaled] if len(risks) == 1 else [*whole, scaled]
    for column, price in product(columns, [cost, *(1e-3 * cost + budget.prices for budget in budgets)]):
        # never-exit is beaten by whatever loses nothing here, but the path has to start next to it
        ordered = [*(point.cuts for point in find_frontier(index, column, price)), (math.inf,) * index.shape[1]]
        found |= dict.fromkeys(ordered)
        for one, other in pairwise(ordered):
            found |= dict.fromkeys(mix_cuts(one, other, step / STEPS, tops) for step in range(1, STEPS))
    for last in (budget.last_free for budget in budgets if budget.last_free is not None):  # none goes beyond this exit
        found |= dict.fromkeys((*cuts[:last], *(0.0,) * (index.shape[1] - last)) for cuts in list(found))
    early = [cuts for cuts in found if any(cut != math.inf for cut in cuts) and is_within(index, cuts, budgets)]
    return [_rate(cuts, index, risks, smoothed_losses, cost) for cuts in early]


def smooth_losses(index: Tensor, column: Tensor) -> Tensor:  # (N,K-1), (N,K) -> (N,K)
    """Each early exit's losses, replaced by their mean given the score, which falls as the score rises.

    By isotonic regression. A frontier of single losses follows chance: a rare error here or there moves its thresholds.
    """
    columns = [column[:, -1]]
    for k in reversed(range(index.shape[1])):
        order = index[:, k].argsort(stable=True)
        fitted = isotonic_regression(column[order, k].double().numpy(), increasing=False).x.copy()
        smooth = torch.empty_like(column[:, k])
        smooth[order] = torch.as_tensor(fitted, dtype=column.dtype)
        columns.insert(0, smooth)
    return torch.stack(columns, 1)


def _rate(cuts: Cuts, index: Tensor, risks: Sequence[Risk], smoothed_losses: Sequence[Tensor], cost: Tensor) -> Candidate:
    exits = find_first_firing(index, cuts)
    losses = [risk.units(exits).double() for risk in risks]
    means = [one.mean().item() if len(one) else 1.0 for one in losses]
    variances = [one.var(correction=0).item() if len(one) else 0.0 for one in losses]
    early = (exits < cost.shape[-1] - 1).double().mean().item()
    count = len(index) if risks[0].groups is None else count_groups(risks[0].groups)
    smoothed = tuple(select_exits(one, exits).double().mean().item() + early / count for one in smoothed_losses)
    return Candidate(
        cuts, average_cost(cost, exits), tuple(means), tuple(variances), tuple(len(one) for one in losses), smoothed
    )


def approximate_p_values(one: Candidate, limits: Sequence[float]) -> list[float]:
    """Normal p-values of each risk, to order policies by; they test nothing.

    The variance of one more loss is added: that no loss was seen does not mean there is no variance.
    """
    found = []
    for mean, variance, count, limit in zip(one.means, one.variances, one.counts, limits, strict=True):
        error = math.sqrt((variance + 1 / max(count, 1)) / max(count, 1))
        found.append(float(ndtr((mean - limit) / error)))
    return found


def order_path(pool: Sequence[Candidate], limits: Sequence[float], most: int = 60) -> list[Candidate]:
    """The candidates that no other beats in both cost and smoothed loss (over its limit) on the first part, safest first.

    The smoothed loss, not the risk: it grows with every sample that leaves, so the path starts next to never-exit and goes
    on in small steps. By risk it would start where the first part's gains happen to be largest, and the first test would
    often end it. Candidates that are likely above their limit are left out.
    """
    likely = [i for i, one in enumerate(pool) if max(approximate_p_values(one, limits)) < 0.9]
    loss = {i: max(h / max(limit, LEAST) for h, limit in zip(pool[i].smoothed_losses, limits, strict=True)) for i in likely}
    kept: list[tuple[float, int]] = []
    for i in sorted(likely, key=lambda i: (pool[i].cost, loss[i])):  # cheapest first
        if not kept or loss[i] < kept[-1][0]:
            kept.append((loss[i], i))
    if len(kept) > most:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [pool[i] for _, i in reversed(kept)]


def choose_tests(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], count: int, delta: float
) -> tuple[Test, ...]:
    """For each risk the tighter test, tried on the first part (repeated up to the second part's ``count``).

    It is tried at the vector of the path that is nearest to being refused for that risk.
    """
    rows = torch.arange(count) % len(index)
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    chosen = []
    for i, risk in enumerate(risks):
        tests = TESTS[risk.kind] if risk.groups is None else ("group_betting",)
        if len(tests) > 1 and path:
            limits = [one.limit for one in risks]
            nearest = min(path, key=lambda one: abs(approximate_p_values(one, limits)[i] - delta))
            losses = risk.at(rows).losses(find_first_firing(index, nearest.cuts)[rows])
            tried = {test: p_value(losses, risk, test, delta) if len(losses) else 1.0 for test in tests}
            chosen.append(min(tests, key=lambda test: tried[test]))
        else:
            chosen.append(tests[0])
    return tuple(chosen)


def run_fixed_sequence_test(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], tests: Sequence[Test], delta: float
) -> SequenceResult:
    """Tests the path on the second part from its safe end; accepts the last vector before the first that fails.

    ``index`` ``(N,K-1)`` (levels) and ``risks`` are those of the second part; there is one test for each risk.
    """
    accepted: Cuts | None = None
    tested: tuple[RiskTest, ...] = ()
    for step, one in enumerate(path, 1):
        exits = find_first_firing(index, one.cuts)
        found = tuple(_test_risk(risk, exits, test, delta) for risk, test in zip(risks, tests, strict=True))
        if not all(test.p_value <= delta for test in found):
            return SequenceResult(accepted, tested or found, step)
        accepted, tested = one.cuts, found
    return SequenceResult(accepted, tested, len(path))


def _test_risk(risk: Risk, exits: Tensor, test: Test, delta: float) -> RiskTest:
    samples, units = len(risk.losses(exits)), risk.units(exits)
    groups = None if risk.groups is None else len(units)
    if not samples:
        return RiskTest(risk.name, risk.limit, test, 0, None, 1.0, groups)
    return RiskTest(risk.name, risk.limit, test, samples, risk.mean(exits), p_value(units, risk, test, delta), groups)


def p_value(losses: Tensor, risk: Risk, test: Test, delta: float) -> float:  # (n,), n > 0
    """The p-value of the null hypothesis "the mean of these losses is above the risk's limit"."""
    values, count = losses.double().numpy(), len(losses)
    if test in ("group_betting", "signed_betting"):  # in random order, as betting needs it
        return group_betting(values, risk.limit, delta)
    if test == "paired":
        more, fewer, spare = (values > 0).sum(), (values < 0).sum(), min(SPARE, delta / 20)
        return float(paired(np.array([more]), np.array([fewer]), count, risk.limit, spare=spare)[0])
    if test == "betting":
        low = -1.0 if risk.kind in ("ternary", "signed") else 0.0
        return float(betting((values[None] - low) / (1 - low), (risk.limit - low) / (1 - low), delta)[0])
    exact = binomial if test == "binomial" else hoeffding_bentkus
    return float(exact(np.array([values.mean()]), count, risk.limit)[0])


def estimate_samples_needed(risks: Sequence[Risk], path: Sequence[Candidate], delta: float) -> int | None:
    """About how many samples (groups, where there are some) the second part needs for the easiest vector of the path.

    From means and variances on the first part, by the normal approximation, and never fewer than a test that sees no loss
    at all would need. ``None`` if every vector has a risk above its limit there: no number would do.
    """
    best: int | None = None
    for one in path:
        most = 0
        for risk, mean, variance in zip(risks, one.means, one.variances, strict=True):
            room = risk.limit - mean
            if room < 1e-9:  # its mean is not even below the limit
                break
            most = max(most, math.ceil(_count_needed(risk, room, variance, delta)))
        else:
            best = most if best is None else min(best, most)
    return best


def _count_needed(risk: Risk, room: float, variance: float, delta: float) -> float:
    if risk.groups is None:
        share = 1.0 if risk.rows is None else max(1, int(risk.rows.sum())) / len(risk.rows)
        lossless = math.log(1 / delta) / -math.log1p(-risk.limit) if 1e-12 < risk.limit < 1 else 1.0
        return float(max(lossless, (ndtri(delta) / room) ** 2 * variance) / share)
    there = risk.groups if risk.rows is None else risk.groups[risk.rows]
    count = max(1, count_groups(there))
    counts_as = 1.0 if risk.largest is None or not len(there) else len(there) / count / risk.largest
    gain = math.log1p(SAFE * counts_as * risk.limit / (1 - risk.limit)) if 1e-12 < risk.limit < 1 else math.inf
    # a bettor with the best stake needs twice log(1 / delta) times the variance over the squared room
    needed = max(math.log(1 / delta) / gain, 2 * math.log(1 / delta) * variance / room**2)
    return needed * count_groups(risk.groups) / count


def certify(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, first: Tensor, second: Tensor, delta: float
) -> tuple[tuple[float, ...], Certification]:
    """The cheapest thresholds that can be certified (never, if there are none), and the record of how.

    ``scores`` ``(N,K-1)`` and ``risks`` are of all samples, of which ``first`` propose the path and ``second`` test it.
    ``cost`` is what is to be small, ``(K,)``, or ``(N,K)`` where that differs between samples: where only spending is
    limited, the harm. The path then leads from the policy that spends least to the one that does least harm.
    """
    cost = cost if cost.ndim == 1 else cost[first]
    levels = quantise(scores[first])
    theirs, ours = [risk.at(first) for risk in risks], [risk.at(second) for risk in risks]
    path = order_path(find_candidates(levels.index, theirs, cost), [risk.limit for risk in risks])
    tests = choose_tests(levels.index, theirs, path, len(second), delta)
    found = run_fixed_sequence_test(levels.apply(scores[second]), ours, path, tests, delta)
    record = Certification(delta, delta, 1, len(first), len(path), found.steps, found.tests)
    groups, units = risks[0].groups, f"{len(scores)} samples"
    if groups is not None:
        record = replace(record, path_groups=count_groups(groups[first]), largest_group=risks[0].largest)
        units = f"{count_groups(groups)} groups"
    if found.cuts is not None:
        return levels.thresholds(found.cuts), record
    needed = estimate_samples_needed(theirs, path, delta)
    total = None if needed is None else max(FEWEST, math.ceil(needed / (1 - PATH_SHARE)))
    reason = _explain_refusal(found.tests, units, total) if scores.shape[1] else "the network has no early exits"
    return (math.inf,) * scores.shape[1], replace(record, reason=reason, samples_needed=total)


def _explain_refusal(tests: Sequence[RiskTest], units: str, needed: int | None) -> str:
    """``units``: how many samples or groups there are, and which of the two."""
    if not tests:
        return f"no early answer kept every limit on the {units}: train longer, or raise a limit"
    worst, (count, unit) = max(tests, key=lambda test: test.p_value), units.split()
    where = f"{worst.samples} samples" if worst.groups is None else f"{worst.groups} groups, {worst.samples} samples"
    seen = "none of its samples was there" if worst.mean is None else f"seen {worst.mean:.4g} in {where}"
    what = f"{worst.name} could not be shown to be at most {worst.limit:g} ({seen}, p-value {worst.p_value:.2g})"
    if worst.limit == 0:
        return f"{what}: that nothing at all is lost can never be shown from samples: raise the limit"
    if needed is None:
        return f"{what}: on the samples that chose the policy it was above the limit, so more {unit} would not help"
    if needed <= int(count):
        return f"{what}: about {needed} {unit} should do on average, so this draw was unlucky, or the limit is at the edge"
    return f"{what}: about {needed} {unit} would be needed"
