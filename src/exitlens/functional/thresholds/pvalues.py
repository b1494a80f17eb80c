"""Valid p-values for "the mean risk is above its limit", from bounded losses of independent samples.

If the null hypothesis holds, a p-value is at most ``u`` with probability at most ``u``, for every ``u`` and every number of
samples. Arrays have one row, or one number, per policy. float64 throughout.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, xlog1py, xlogy

Array = NDArray[np.float64]
SAFE = 0.97  # share of the stake with which a single loss of 1 takes all
SPARE = 1e-3  # part of the level for the rate of differing pairs in the paired test


def binomial(mean: Array, count: int, limit: float) -> Array:  # (P,) -> (P,)
    """Return exact p-values for losses 0 and 1: the probability of so few errors among ``count`` at the rate ``limit``."""
    return np.asarray(bdtr(np.rint(np.asarray(mean) * count), count, limit))


def hoeffding_bentkus(mean: Array, count: int, limit: float) -> Array:  # (P,) -> (P,)
    """Return p-values for losses in [0, 1]: the smaller of Hoeffding's bound (by relative entropy) and Bentkus's.

    Bates et al., arXiv 2101.02703, section 3.1.1; Bentkus 2004, e times the binomial tail at the next whole number.
    """
    mean = np.asarray(mean, dtype=np.float64)
    if not 0 < limit < 1:
        return np.ones_like(mean) if limit <= 0 else np.zeros_like(mean)
    a = np.minimum(mean, limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(a > 0, a * np.log(a / limit), 0.0) + (1 - a) * np.log((1 - a) / (1 - limit))
    bentkus = math.e * np.asarray(bdtr(np.ceil(mean * count - 1e-9), count, limit))
    return np.asarray(np.minimum(1.0, np.minimum(np.exp(-count * entropy), bentkus)))


def betting(losses: Array, limit: float, level: float) -> Array:  # (P,n) -> (P,)
    """Return p-values for losses in [0, 1] that vary little: one over the most that a bettor against the null ever owned.

    Waudby-Smith and Ramdas, arXiv 2010.09686, in the form of arXiv 2110.01052 (appendix B): the stake is predictable, from
    the mean and variance so far, and tuned for ``level``; valid by Ville's inequality for any level.
    """
    losses = np.asarray(losses, dtype=np.float64)
    count = losses.shape[1]
    if not 0 < limit < 1:
        return np.full(len(losses), float(limit <= 0))
    seen = np.arange(1, count + 1)
    means = (0.5 + losses.cumsum(1)) / (1 + seen)
    spread = (0.25 + ((losses - means) ** 2).cumsum(1)) / (1 + seen)
    before = np.concatenate([np.full((len(losses), 1), 0.25), spread[:, :-1]], axis=1)
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / level) / (count * before)))
    wealth = np.log1p(stake * (limit - losses)).cumsum(1).max(1)
    return np.asarray(np.minimum(1.0, np.exp(-wealth)))


def group_betting(values: Array, limit: float, level: float) -> float:  # (n,) -> ()
    """Return a p-value for values of at most 1, such as means of groups, by :func:`betting` with the largest safe stakes.

    The factors ``1 + stake (limit - value)`` need no lower end of the values, so losses that may be gains (-1) are not moved
    into [0, 1], which would halve the largest stake and double the groups that a test without any loss takes. The stake
    comes from the mean and variance so far, which start at the limit and at 0.05. The bet is valid whatever they are, if
    the order of the values says nothing about them.
    """
    values = np.asarray(values, dtype=np.float64)
    if limit >= 1:
        return 0.0
    seen = np.arange(1, len(values) + 1)
    means = (limit + values.cumsum()) / (1 + seen)
    spread = (0.05 + ((values - means) ** 2).cumsum()) / (1 + seen)
    before = np.concatenate([[0.05], spread[:-1]])
    stake = np.minimum(SAFE / (1 - limit), np.sqrt(2 * math.log(1 / level) / (len(values) * before)))
    return float(min(1.0, np.exp(-np.log1p(stake * (limit - values)).cumsum().max())))


def paired(more: int, fewer: int, count: int, limit: float, *, spare: float = SPARE, grid: int = 49) -> float:
    """Return a p-value for differences of two 0/1 losses, with the values -1, 0 and 1 (non-inferiority of pairs).

    The statistic is ``Z = (T - n limit) / sqrt(D + n limit / 2 + 1/2)`` with ``T = more - fewer`` and ``D = more + fewer``
    pairs that differ. With the rate q of those known, its distribution at the null's boundary is exact (D is binomial, and
    so is ``more`` given D). q is not known: the p-value is the largest over all q up to q's exact upper bound at level
    ``spare``, plus ``spare`` (Berger and Boos 1994; for pairs Sidik 2003). Dividing by the spread makes Z's distribution
    depend little on q, so little is lost by that. The maximum is taken over a grid in q, in equal steps of its standard
    deviation (arcsine of its root), over which the probability varies slowly: by enumeration it is exact to 0.1 % of u.

    Args:
        more: samples with +1 (wrong early, right at the end). fewer: samples with -1.
        count: samples, those with 0 included.
        limit: in [0, 1).
        spare: chosen before the samples are seen; no p-value is smaller.
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
    most = np.floor((m + count * limit + z * np.sqrt(m + spread)) / 2 + 1e-9)  # so many of m are +1 where Z is at most z
    tail = bdtr(np.clip(most, 0, np.maximum(m - 1, 0)), np.maximum(m, 1).astype(np.int64), (q + limit) / (2 * q))
    below = np.where(most < 0, 0.0, np.where(most >= m, 1.0, tail))
    left_out = np.clip(1 - chance.sum(1), 0, 1)
    return float(min(1.0, spare + ((chance * below).sum(1) + left_out).max()))


def upper_bound(errors: int, count: int, level: float) -> float:
    """Return the exact upper confidence bound of a rate (Clopper and Pearson, 1934), too low with probability ``level``."""
    return 1.0 if errors >= count else float(betaincinv(errors + 1, count - errors, 1 - level))
