"""Certified thresholds: a path of threshold vectors from one part of a trace, walked by tests on the other part.

Pareto Testing (arXiv 2210.07913): the first part decides everything that may be decided freely, which vectors are worth
testing, in which order, by which test. The second part is used once: fixed-sequence testing along the path, each null being
"some risk is above its limit" with the largest of the risks' p-values, so the probability that a vector with a risk above
its limit is accepted is at most delta, however many risks and vectors there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import ndtr, ndtri
from torch import Tensor

from exitlens.functional.pvalues import SPARE, Array, betting, binomial, hoeffding_bentkus, paired
from exitlens.functional.risk import select_exits
from exitlens.functional.routing import find_first_firing
from exitlens.functional.search import Cuts, frontier

Test = Literal["binomial", "paired", "hoeffding_bentkus", "betting"]
TESTS: dict[str, tuple[Test, ...]] = {  # by what the losses are
    "binary": ("binomial",),
    "ternary": ("paired", "betting"),
    "unit": ("hoeffding_bentkus", "betting"),
}


STEPS = 8  # from one vector of the frontier to the next


@dataclass(frozen=True)
class Risk:
    """One risk of a routing, and what it may be.

    Attributes:
        name: for the record.
        values: ``(N,K)``: what each sample loses at each exit; 0 at the final one.
        limit: on the mean, in [0, 1].
        kind: ``binary``: 0 or 1; ``ternary``: -1, 0 or 1; ``unit``: in [0, 1].
        rows: ``(N,)`` bool: the samples that it is the mean over; ``None``: all.
    """

    name: str
    values: Tensor
    limit: float
    kind: Literal["binary", "ternary", "unit"]
    rows: Tensor | None = None

    def at(self, where: Tensor) -> Risk:
        """The same of some of the samples (indices)."""
        return Risk(self.name, self.values[where], self.limit, self.kind, None if self.rows is None else self.rows[where])

    def losses(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """Of the samples that it is about, at the exits that they take."""
        found = select_exits(self.values, exits)
        return found if self.rows is None else found[self.rows]

    def column(self) -> Tensor:  # -> (N,K)
        """Values whose mean over all samples is the risk."""
        if self.rows is None:
            return self.values
        return self.values * self.rows[:, None] * (len(self.rows) / max(1, int(self.rows.sum())))


@dataclass(frozen=True)
class Tested:
    """How one risk of one policy was tested on the second part."""

    name: str
    limit: float
    test: Test
    samples: int
    mean: float
    p_value: float


@dataclass(frozen=True)
class Certificate:
    """What the walk accepted: ``cuts`` is ``None`` where nothing passed; then ``tested`` is of the first that did not."""

    cuts: Cuts | None
    tested: tuple[Tested, ...]
    walked: int
    path: int


@dataclass(frozen=True)
class Candidate:
    """A threshold vector, its mean cost on the first part, and of every risk's losses there mean, variance and number.

    ``smoothed_losses`` are means of the losses above 0 after :func:`smooth_losses`: gains do not make up for losses. The
    share of samples that leave early counts as one more sample's loss, so that of two vectors without any loss the one by
    which fewer leave is the safer.
    """

    cuts: Cuts
    cost: float
    means: tuple[float, ...]
    variances: tuple[float, ...]
    counts: tuple[int, ...]
    smoothed_losses: tuple[float, ...]


def find_candidates(index: Tensor, risks: Sequence[Risk], cost: Tensor) -> list[Candidate]:
    """Threshold vectors worth testing: frontiers of the risks and of their sum, with steps between neighbours.

    Never-exit, which needs no test, is left out.

    Args:
        index: ``(N,K-1)`` levels of the first part. risks: of the first part. cost: ``(K,)``.
    """
    smoothed_losses = [smooth_losses(index, risk.column().clamp_min(0)) for risk in risks]
    whole = [harm for harm, risk in zip(smoothed_losses, risks, strict=True) if risk.rows is None]
    scaled = torch.stack([harm / max(risk.limit, 1e-3) for harm, risk in zip(smoothed_losses, risks, strict=True)]).sum(0)
    tops = index.amax(0).tolist()
    found: dict[Cuts, None] = {}
    for column in [scaled] if len(risks) == 1 else [*whole, scaled]:
        # never-exit is beaten by whatever does no harm here, but the path has to start next to it
        ordered = [*(point.cuts for point in frontier(index, column, cost)), (math.inf,) * index.shape[1]]
        found |= dict.fromkeys(ordered)
        for one, other in pairwise(ordered):
            found |= dict.fromkeys(_between(one, other, step / STEPS, tops) for step in range(1, STEPS))
    return [_rate(cuts, index, risks, smoothed_losses, cost) for cuts in found if any(cut != math.inf for cut in cuts)]


def smooth_losses(index: Tensor, column: Tensor) -> Tensor:  # (N,K-1), (N,K) -> (N,K)
    """Each early exit's losses replaced by their mean at the score, which falls as the score rises (isotonic regression).

    The frontier of single losses follows chance: a rare error here or there moves its thresholds.
    """
    columns = [column[:, -1]]
    for k in reversed(range(index.shape[1])):
        order = index[:, k].argsort(stable=True)
        fitted = isotonic_regression(column[order, k].double().numpy(), increasing=False).x.copy()
        smooth = torch.empty_like(column[:, k])
        smooth[order] = torch.as_tensor(fitted, dtype=column.dtype)
        columns.insert(0, smooth)
    return torch.stack(columns, 1)


def _between(one: Cuts, other: Cuts, step: float, tops: Sequence[int]) -> Cuts:
    mixed = []
    for a, b, top in zip(one, other, tops, strict=True):
        never = top + 1  # one level above the highest
        value = round((1 - step) * min(a, never) + step * min(b, never))
        mixed.append(math.inf if value >= never else float(value))
    return tuple(mixed)


def _rate(cuts: Cuts, index: Tensor, risks: Sequence[Risk], smoothed_losses: Sequence[Tensor], cost: Tensor) -> Candidate:
    exits = find_first_firing(index, cuts)
    losses = [risk.losses(exits).double() for risk in risks]
    means = [one.mean().item() if len(one) else 1.0 for one in losses]
    variances = [one.var(correction=0).item() if len(one) else 0.0 for one in losses]
    early = (exits < len(cost) - 1).double().mean().item()
    harm = tuple(select_exits(one, exits).double().mean().item() + early / len(index) for one in smoothed_losses)
    price = cost[exits].double().mean().item()
    return Candidate(cuts, price, tuple(means), tuple(variances), tuple(len(one) for one in losses), harm)


def approximate_p_values(one: Candidate, limits: Sequence[float]) -> list[float]:
    """Normal p-values of each risk, which order policies and test nothing.

    With the variance of one more loss added, because no loss seen is not no variance.
    """
    found = []
    for mean, variance, count, limit in zip(one.means, one.variances, one.counts, limits, strict=True):
        error = math.sqrt((variance + 1 / max(count, 1)) / max(count, 1))
        found.append(float(ndtr((mean - limit) / error)))
    return found


def order_path(pool: Sequence[Candidate], limits: Sequence[float], most: int = 60) -> list[Candidate]:
    """The candidates that no other beats in both cost and harm (over its limit) on the first part, safest first.

    Harm, not the risk: it grows with every sample that leaves, so the path starts next to never-exit and goes on in small
    steps. By risk it would start where the first part's gains happen to be largest, and the first test would often end it.
    What is likely above its limit is left out.
    """
    likely = [i for i, one in enumerate(pool) if max(approximate_p_values(one, limits)) < 0.9]
    harm = {i: max(h / max(limit, 1e-6) for h, limit in zip(pool[i].smoothed_losses, limits, strict=True)) for i in likely}
    kept: list[tuple[float, int]] = []
    for i in sorted(likely, key=lambda i: (pool[i].cost, harm[i])):  # cheapest first
        if not kept or harm[i] < kept[-1][0]:
            kept.append((harm[i], i))
    if len(kept) > most:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [pool[i] for _, i in reversed(kept)]


def walk(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], tests: Sequence[Test], delta: float
) -> Certificate:
    """Tests the path on the second part from its safe end; the answer is the last vector before the first that fails.

    Args:
        index: ``(N,K-1)`` levels of the second part. risks: of the second part.
        path: from :func:`order_path`. tests: one for each risk.
        delta: in (0, 1).
    """
    accepted: Cuts | None = None
    tested: tuple[Tested, ...] = ()
    for step, one in enumerate(path):
        exits = find_first_firing(index, one.cuts)
        found = tuple(_test_risk(risk, exits, test, delta) for risk, test in zip(risks, tests, strict=True))
        if not all(one.p_value <= delta for one in found):
            return Certificate(accepted, tested or found, step + 1, len(path))
        accepted, tested = one.cuts, found
    return Certificate(accepted, tested, len(path), len(path))


def _test_risk(risk: Risk, exits: Tensor, test: Test, delta: float) -> Tested:
    losses = risk.losses(exits)
    p = p_value(losses, risk, test, delta) if len(losses) else 1.0
    return Tested(risk.name, risk.limit, test, len(losses), losses.double().mean().item() if len(losses) else math.nan, p)


def p_value(losses: Tensor, risk: Risk, test: Test, delta: float) -> float:
    """Of the null "the mean of these losses is above the risk's limit".

    Args:
        losses: ``(n,)``, one or more.
    """
    values, count = losses.double().numpy(), len(losses)
    if test == "paired":
        more, fewer, spare = (values > 0).sum(), (values < 0).sum(), min(SPARE, delta / 20)
        return float(paired(np.array([more]), np.array([fewer]), count, risk.limit, spare=spare)[0])
    if test == "betting":
        low = -1.0 if risk.kind == "ternary" else 0.0
        return float(betting((values[None] - low) / (1 - low), (risk.limit - low) / (1 - low), delta)[0])
    mean: Array = np.array([values.mean()])
    return float((binomial if test == "binomial" else hoeffding_bentkus)(mean, count, risk.limit)[0])


def choose_tests(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], count: int, delta: float
) -> tuple[Test, ...]:
    """For each risk the test that is tighter, tried on the first part, repeated to the second part's ``count``.

    It is tried at the vector of the path that stands nearest to being refused for that risk.
    """
    rows = torch.arange(count) % len(index)
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    chosen = []
    for i, risk in enumerate(risks):
        tests = TESTS[risk.kind]
        if len(tests) > 1 and path:
            limits = [one.limit for one in risks]
            nearest = min(path, key=lambda one: abs(approximate_p_values(one, limits)[i] - delta))
            losses = risk.at(rows).losses(find_first_firing(index, nearest.cuts)[rows])
            tried = {test: p_value(losses, risk, test, delta) if len(losses) else 1.0 for test in tests}
            chosen.append(min(tests, key=lambda test: tried[test]))
        else:
            chosen.append(tests[0])
    return tuple(chosen)


def estimate_samples_needed(risks: Sequence[Risk], path: Sequence[Candidate], delta: float) -> int | None:
    """About how many samples the second part needs for the vector of the path that is easiest to accept.

    From means and variances on the first part, by the normal approximation, and never fewer than a test needs that sees
    no loss at all. ``None`` if every vector has a risk above its limit there: no number would do.
    """
    best: int | None = None
    for one in path:
        most = 0
        for risk, mean, variance in zip(risks, one.means, one.variances, strict=True):
            room = risk.limit - mean
            if room < 1e-9:  # not even its mean is below: no number of samples would do
                break
            share = 1.0 if risk.rows is None else max(1, int(risk.rows.sum())) / len(risk.rows)
            lossless = math.log(1 / delta) / -math.log1p(-risk.limit) if 1e-12 < risk.limit < 1 else 1.0
            needed = max(lossless, (ndtri(delta) / room) ** 2 * variance) / share
            most = max(most, math.ceil(needed))
        else:
            best = most if best is None else min(best, most)
    return best
