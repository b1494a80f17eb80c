"""Certified thresholds: one part of a trace proposes a path of threshold vectors, the other part tests it.

Pareto Testing (arXiv 2210.07913). The first part decides which vectors are worth testing, in which order, by which tests.
The second part is used once, for a fixed-sequence test along the path. Each null hypothesis is "some risk is above its
limit", with the largest of the risks' p-values, so the probability that a vector with a risk above its limit is accepted is
at most delta, however many risks and vectors there are. The p-values hold for every number of independent bounded losses.

The rows of the second part have to be in random order: betting sets each stake by the losses before it, which may say
nothing about the next one. :func:`exitlens.calibrate` shuffles the samples, or numbers the groups at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, ndtri, rel_entr, xlog1py, xlogy
from torch import Tensor

from exitlens.functional.groups import count_groups
from exitlens.functional.risk import Risk
from exitlens.functional.routing import find_first_firing
from exitlens.functional.search import Candidate, Cuts, approximate_p_values, find_candidates, order_path, quantise
from exitlens.types.policies import Certification, RiskTest

Test = Literal["binomial", "paired", "hoeffding_bentkus", "betting", "group_betting", "signed_betting"]
TESTS: dict[str, tuple[Test, ...]] = {  # by what the losses are
    "binary": ("binomial",),
    "ternary": ("paired", "betting"),
    "unit": ("hoeffding_bentkus", "betting"),
    "signed": ("signed_betting", "betting"),
}
PATH_SHARE = 0.4  # share of samples that propose the path; the others test it (docs/concepts/guarantees.md)
FEWEST = 10  # samples to start from; so few can certify nothing, and the policy says how many it takes
Array = NDArray[np.float64]
SAFE = 0.97  # the largest stake, as a share of the one at which a single loss of 1 takes all that the bettor owns
SPARE = 1e-3  # chance that the paired test leaves for its bound on the rate of differing pairs to be wrong


class SequenceResult(NamedTuple):
    """The vector that was accepted last, with its tests. If none was: no ``cuts``, and the tests of the first vector."""

    cuts: Cuts | None
    tests: tuple[RiskTest, ...]
    steps: int


def choose_tests(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], count: int, delta: float
) -> tuple[Test, ...]:
    """Return the tighter test for each risk on ``count`` of these samples, at the vector nearest to being refused."""
    rows = torch.arange(count) % len(index)
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    p_values, chosen = [approximate_p_values(candidate, [risk.limit for risk in risks]) for candidate in path], []
    for i, risk in enumerate(risks):
        tests = TESTS[risk.kind] if risk.groups is None else ("group_betting",)
        if len(tests) == 1 or not path:
            chosen.append(tests[0])
            continue
        nearest = min(range(len(path)), key=lambda step: abs(p_values[step][i] - delta))
        losses = risk.at(rows).losses(find_first_firing(index, path[nearest].cuts)[rows])
        tried = {test: p_value(losses, risk, test, delta) if len(losses) else 1.0 for test in tests}
        chosen.append(min(tests, key=lambda test: tried[test]))
    return tuple(chosen)


def run_fixed_sequence_test(
    index: Tensor, risks: Sequence[Risk], path: Sequence[Candidate], tests: Sequence[Test], delta: float
) -> SequenceResult:
    """Test the path on the second part (its levels and risks) from the safe end; accept the last vector before a failure."""
    accepted: Cuts | None = None
    outcomes: tuple[RiskTest, ...] = ()
    for step, candidate in enumerate(path, 1):
        exits = find_first_firing(index, candidate.cuts)
        tested: tuple[RiskTest, ...] = ()
        for risk, test in zip(risks, tests, strict=True):
            samples, units = len(risk.losses(exits)), risk.units(exits)
            groups = None if risk.groups is None else len(units)
            mean, p = (risk.mean(exits), p_value(units, risk, test, delta)) if samples else (None, 1.0)
            tested += (RiskTest(risk.name, risk.limit, test, samples, mean, p, groups),)
        if not all(test.p_value <= delta for test in tested):
            return SequenceResult(accepted, outcomes or tested, step)
        accepted, outcomes = candidate.cuts, tested
    return SequenceResult(accepted, outcomes, len(path))


def p_value(losses: Tensor, risk: Risk, test: Test, delta: float) -> float:  # (n,), n > 0
    """Return the p-value of the null hypothesis "the mean of these losses, in random order, is above the risk's limit"."""
    values, count = losses.double().numpy(), len(losses)
    if test in ("group_betting", "signed_betting"):
        return group_betting(values, risk.limit, delta)
    if test == "paired":
        return paired(int((values > 0).sum()), int((values < 0).sum()), count, risk.limit, spare=min(SPARE, delta / 20))
    if test == "betting":
        low = -1.0 if risk.kind in ("ternary", "signed") else 0.0
        return betting((values - low) / (1 - low), (risk.limit - low) / (1 - low), delta)
    return (binomial if test == "binomial" else hoeffding_bentkus)(values.mean(), count, risk.limit)


def estimate_samples_needed(
    risks: Sequence[Risk], path: Sequence[Candidate], delta: float, *, in_samples: bool = False
) -> int | None:
    """Estimate how many groups (or samples) the second part needs for the easiest vector of the path.

    By the normal approximation on the first part; ``None`` if every vector has a risk above its limit there.
    """
    needed = []
    for candidate in path:
        rows = list(zip(risks, candidate.means, candidate.variances, strict=True))
        if all(risk.limit - mean >= 1e-9 for risk, mean, _ in rows):
            needed.append(
                max(_count_needed(risk, risk.limit - mean, variance, delta, in_samples) for risk, mean, variance in rows)
            )
    return math.ceil(min(needed)) if needed else None


def _count_needed(risk: Risk, room: float, variance: float, delta: float, in_samples: bool) -> float:
    if risk.groups is None:
        share = 1.0 if risk.rows is None else max(1, int(risk.rows.sum())) / len(risk.rows)
        lossless = math.log(1 / delta) / -math.log1p(-risk.limit) if 1e-12 < risk.limit < 1 else 1.0
        return float(max(lossless, (ndtri(delta) / room) ** 2 * variance) / share)
    groups = risk.groups if risk.rows is None else risk.groups[risk.rows]
    count = max(1, count_groups(groups))
    counts_as = 1.0 if risk.largest is None or not len(groups) else len(groups) / count / risk.largest
    gain = math.log1p(SAFE * counts_as * risk.limit / (1 - risk.limit)) if 1e-12 < risk.limit < 1 else math.inf
    # a bettor with the best stake needs twice log(1 / delta) times the variance over the squared room
    needed = max(math.log(1 / delta) / gain, 2 * math.log(1 / delta) * variance / room**2)
    return needed * (len(risk.groups) if in_samples else count_groups(risk.groups)) / count


def certify(
    scores: Tensor,
    risks: Sequence[Risk],
    price: Tensor,
    first: Tensor,
    second: Tensor,
    groups: Tensor | None = None,
    *,
    level: float,
) -> tuple[tuple[float, ...], Certification]:
    """Return the cheapest thresholds that can be certified (never, if none can), and the record of how.

    ``scores`` ``(N,K-1)`` and ``risks`` are of all samples, of which ``first`` propose the path and ``second`` test it. The
    ``price`` to minimise is the cost ``(K,)``, or a loss ``(N,K)`` if only spending is limited. ``groups`` are those that
    the data have. The record is of a first request.
    """
    price = price if price.ndim == 1 else price[first]
    levels = quantise(scores[first])
    proposing, testing = ([risk.at(rows) for risk in risks] for rows in (first, second))
    path = order_path(find_candidates(levels.index, proposing, price), [risk.limit for risk in risks])
    tests = choose_tests(levels.index, proposing, path, len(second), level)
    result = run_fixed_sequence_test(levels.apply(scores[second]), testing, path, tests, level)
    record = Certification(
        delta=level,
        level=level,
        request_number=1,
        path_samples=len(first),
        path_length=len(path),
        steps_tested=result.steps,
        tests=result.tests,
        path_groups=None if groups is None else count_groups(groups[first]),
        largest_group=max((risk.largest for risk in risks if risk.groups is groups and risk.largest), default=None),
    )
    if result.cuts is not None:
        return levels.thresholds(result.cuts), record
    count, unit = (len(scores), "samples") if groups is None else (count_groups(groups), "groups")
    needed = estimate_samples_needed(proposing, path, level, in_samples=groups is None)
    total = None if needed is None else max(FEWEST, math.ceil(needed / (1 - PATH_SHARE)))
    reason = _explain_refusal(result.tests, count, unit, total) if scores.shape[1] else "the network has no early exits"
    return (math.inf,) * scores.shape[1], replace(record, reason=reason, samples_needed=total)


def _explain_refusal(tests: Sequence[RiskTest], count: int, unit: str, needed: int | None) -> str:
    if not tests:
        return f"no early answer kept every limit on the {count} {unit}: train longer, or raise a limit"
    worst = max(tests, key=lambda test: test.p_value)
    where = f"{worst.samples} samples" if worst.groups is None else f"{worst.groups} groups, {worst.samples} samples"
    if worst.name == "max_cue_drop":
        where = f"{worst.samples} swapped samples that form {worst.groups} independent units"
    seen = "none of its samples was there" if worst.mean is None else f"seen {worst.mean:.4g} in {where}"
    what = f"{worst.name} could not be shown to be at most {worst.limit:g} ({seen}, p-value {worst.p_value:.2g})"
    if worst.limit == 0:
        return f"{what}: that nothing at all is lost can never be shown from samples: raise the limit"
    if needed is None:
        return f"{what}: on the samples that chose the policy it was above the limit, so more {unit} would not help"
    if needed <= count:
        return f"{what}: about {needed} {unit} should do on average, so this draw was unlucky, or the limit is at the edge"
    return f"{what}: about {needed} {unit} would be needed"


def binomial(mean: float, count: int, limit: float) -> float:
    """Return the exact p-value for losses 0 and 1: the probability of so few errors at the rate ``limit``."""
    return float(bdtr(round(mean * count), count, limit))


def hoeffding_bentkus(mean: float, count: int, limit: float) -> float:
    """Return a p-value for losses in [0, 1]: the smaller of Hoeffding's bound (by relative entropy) and Bentkus's.

    Bates et al., arXiv 2101.02703, section 3.1.1; Bentkus 2004, e times the binomial tail at the next whole number.
    """
    if not 0 < limit < 1:
        return float(limit <= 0)
    a = min(mean, limit)
    entropy = rel_entr(a, limit) + rel_entr(1 - a, 1 - limit)
    return float(min(1.0, math.exp(-count * entropy), math.e * bdtr(math.ceil(mean * count - 1e-9), count, limit)))


def betting(losses: Array, limit: float, level: float) -> float:  # (n,)
    """Return a p-value for losses in [0, 1] that vary little: one over the most that a bettor against the null ever owned.

    Waudby-Smith and Ramdas, arXiv 2010.09686, in the form of arXiv 2110.01052 (appendix B): the stake is predictable, from
    the mean and variance so far, and tuned for ``level``; valid by Ville's inequality for any level.
    """
    return _bet(losses, limit, level, 0.5, 0.25, 1.0) if 0 < limit < 1 else float(limit <= 0)


def group_betting(values: Array, limit: float, level: float) -> float:  # (n,)
    """Return a p-value for values of at most 1, such as means of groups, by :func:`betting` with the largest safe stakes.

    The factors ``1 + stake (limit - value)`` need no lower end of the values, so losses that may be gains (-1) are not moved
    into [0, 1], which would halve the largest stake and double the groups that a test without any loss takes. The bet is
    valid whatever the stakes are, if the order of the values says nothing about them.
    """
    return _bet(values, limit, level, limit, 0.05, SAFE / (1 - limit)) if limit < 1 else 0.0


def bound_mean(values: Array, delta: float, step: float = 1e-3) -> float:  # (n,) in [0, 1]
    """Return a number that the mean exceeds with probability at most ``delta``: where betting against larger ones ends.

    Limits are tested from 1 down, in steps, until one is not refuted: a fixed sequence, so that no correction is due.
    """
    bound = 1.0
    for limit in np.arange(1 - step, 0, -step):
        if group_betting(values, float(limit), delta) > delta:
            break
        bound = float(limit)
    return bound


def _bet(values: Array, limit: float, level: float, mean: float, variance: float, largest: float) -> float:
    """Bet with stakes up to ``largest``, from the mean and variance so far, which start as given."""
    seen = np.arange(1, len(values) + 1)
    means = (mean + values.cumsum()) / (1 + seen)
    variances = (variance + ((values - means) ** 2).cumsum()) / (1 + seen)
    before = np.append(variance, variances[:-1])
    stake = np.minimum(largest, np.sqrt(2 * math.log(1 / level) / (len(values) * before)))
    return float(min(1.0, np.exp(-np.log1p(stake * (limit - values)).cumsum().max())))


@lru_cache(4096)  # a fixed sequence asks for the same counts again and again, and a call takes a millisecond
def paired(more: int, fewer: int, count: int, limit: float, *, spare: float = SPARE, grid: int = 49) -> float:
    """Return a p-value for differences of two 0/1 losses, with the values -1, 0 and 1 (non-inferiority of pairs).

    The statistic is ``Z = (T - n limit) / sqrt(D + n limit / 2 + 1/2)`` with ``T = more - fewer`` and ``D = more + fewer``
    pairs that differ. With the rate q of those known, its distribution at the null's boundary is exact (D is binomial, and
    so is ``more`` given D). q is not known: the p-value is the largest over all q up to q's exact upper bound at level
    ``spare``, plus ``spare`` (Berger and Boos 1994; for pairs Sidik 2003). Dividing by the spread makes Z's distribution
    depend little on q, so little is lost by that. The maximum is taken over a grid in q, in equal steps of its standard
    deviation (arcsine of its root), over which the probability varies slowly: by enumeration it is exact to 0.1 % of u.

    Among ``count`` samples, ``more`` have +1 (wrong early, right at the end), ``fewer`` have -1, and the others 0; ``limit``
    is in [0, 1). ``spare`` has to be chosen before the samples are seen; no p-value is smaller.
    """
    total, differ = more - fewer, more + fewer
    if total >= limit * count:  # nothing speaks against the null
        return 1.0
    upper = upper_bound(differ, count, spare)
    if upper <= limit:  # no rate that is left can have so large a difference
        return spare
    q = np.sin(np.linspace(math.asin(math.sqrt(max(limit, 1e-12))), math.asin(math.sqrt(upper)), grid))[:, None] ** 2
    widest = min(max(0.5, limit), upper)  # the rate in range at which the number of pairs varies most
    width = math.ceil(9 * math.sqrt(count * widest * (1 - widest)) + 30)
    centre = np.clip(np.rint(count * q), width, max(count - width, width))
    pairs = centre + np.arange(-width, width + 1)
    inside = (pairs >= 0) & (pairs <= count)
    m = np.where(inside, pairs, 0)
    ways = gammaln(count + 1) - gammaln(m + 1) - gammaln(count - m + 1)
    chance = np.where(inside, np.exp(ways + xlogy(m, q) + xlog1py(count - m, -q)), 0.0)
    spread = count * limit / 2 + 0.5
    z = (total - count * limit) / math.sqrt(differ + spread)
    wins = np.floor((m + count * limit + z * np.sqrt(m + spread)) / 2 + 1e-9)  # the most +1 among m where Z is at most z
    tail = bdtr(
        np.clip(wins, 0, np.maximum(m - 1, 0)), np.maximum(m, 1).astype(np.int64), np.minimum(1.0, (q + limit) / (2 * q))
    )
    below = np.where(wins < 0, 0.0, np.where(wins >= m, 1.0, tail))
    left_out = np.clip(1 - chance.sum(1), 0, 1)
    return float(min(1.0, spare + ((chance * below).sum(1) + left_out).max()))


def upper_bound(errors: float, count: float, level: float) -> float:
    """Return the exact upper confidence bound of a rate (Clopper and Pearson, 1934), too low with probability ``level``.

    For fractional counts it interpolates.
    """
    return 1.0 if errors >= count else float(betaincinv(errors + 1, count - errors, 1 - level))
