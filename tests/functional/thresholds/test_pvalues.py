"""p-values against SciPy, by hand, and by what they promise: under the null rarely small."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from exitlens.functional.thresholds.certification import (
    SAFE,
    SPARE,
    betting,
    binomial,
    group_betting,
    hoeffding_bentkus,
    paired,
    upper_bound,
)

slow = pytest.mark.slow


@pytest.mark.parametrize(("errors", "count"), [(0, 1), (0, 299), (3, 100), (70, 70), (1, 2), (40, 2000)])
def test_the_upper_bound_is_clopper_and_pearsons(errors, count):
    expected = 1.0 if errors == count else stats.binomtest(errors, count).proportion_ci(0.9).high
    assert upper_bound(errors, count, 0.05) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 400), st.data(), st.floats(0.001, 0.5))
@settings(max_examples=60, deadline=None)
def test_binomial_is_scipys(count, data, limit):
    errors = data.draw(st.integers(0, count))
    expected = stats.binomtest(errors, count, limit, alternative="less").pvalue
    assert binomial(np.array([errors / count]), count, limit)[0] == pytest.approx(expected, rel=1e-9)


def test_hoeffding_bentkus_by_hand():
    count, limit, mean = 100, 0.1, 0.02
    entropy = mean * math.log(mean / limit) + (1 - mean) * math.log((1 - mean) / (1 - limit))
    bentkus = math.e * stats.binom.cdf(2, count, limit)
    found = hoeffding_bentkus(np.array([mean, 0.5, 0.0]), count, limit)
    assert found[0] == pytest.approx(min(math.exp(-count * entropy), bentkus))
    assert found[1] == 1
    assert found[2] == pytest.approx(min(0.9**100, math.e * 0.9**100))
    assert hoeffding_bentkus(np.array([0.0]), 10, 0.0)[0] == 1
    assert hoeffding_bentkus(np.array([0.7]), 10, 1.0)[0] == 0


def test_betting_by_hand():
    losses, limit, level = np.array([[0.0, 1.0, 0.0]]), 0.5, 0.1
    wealth, best, total, square = 1.0, 1.0, 0.0, 0.25
    for i, x in enumerate(losses[0], 1):
        before = square / i if i > 1 else 0.25
        wealth *= 1 + min(1.0, math.sqrt(2 * math.log(1 / level) / (3 * before))) * (limit - x)
        best = max(best, wealth)
        total += x
        square += (x - (0.5 + total) / (1 + i)) ** 2
    assert betting(losses, limit, level)[0] == pytest.approx(1 / best)
    assert betting(losses, 0.0, level)[0] == 1
    assert betting(losses, 1.0, level)[0] == 0


def _exact(more: int, fewer: int, count: int, limit: float) -> float:
    """The same definition by SciPy, on a much finer grid, summed over every number of pairs that differ."""
    total, differ = more - fewer, more + fewer
    if total >= limit * count:
        return 1.0
    upper = 1.0 if differ == count else stats.binomtest(differ, count).proportion_ci(1 - 2 * SPARE).high
    if upper <= limit:
        return SPARE
    found = []
    for q in np.linspace(max(limit, 1e-12), upper, 60):
        m = np.arange(count + 1)
        ups = m[None, :]  # every outcome of more, for every number m of pairs that differ
        z = (2 * ups - m[:, None] - count * limit) / np.sqrt(m[:, None] + count * limit / 2 + 0.5)
        seen = (total - count * limit) / math.sqrt(differ + count * limit / 2 + 0.5)
        chance = np.where(z <= seen + 1e-9, stats.binom.pmf(ups, m[:, None], (q + limit) / (2 * q)), 0.0)
        found.append(float((stats.binom.pmf(m, count, q) * chance.sum(1)).sum()))
    return min(1.0, SPARE + max(found))


@pytest.mark.parametrize("count", [5, 60, pytest.param(150, marks=slow)])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.1])
def test_paired_is_what_its_definition_says(count, limit):
    rng = np.random.default_rng(count)
    for _ in range(4):
        more, fewer = int(rng.integers(0, max(2, count // 10))), int(rng.integers(0, max(2, count // 8)))
        assert paired(more, fewer, count, limit) == pytest.approx(_exact(more, fewer, count, limit), rel=0.02, abs=2e-4)


@pytest.mark.parametrize(
    ("count", "limit"),
    [
        (25, 0.0),
        pytest.param(40, 0.05, marks=slow),
        pytest.param(60, 0.0, marks=slow),
        pytest.param(60, 0.05, marks=slow),
        pytest.param(80, 0.01, marks=slow),
    ],
)
def test_paired_by_enumeration(count, limit):
    """Every outcome, many rates q: the probability of a p-value up to u is at most u (to 0.1 % of u, for the grid)."""
    outcomes = [(more, fewer) for more in range(count + 1) for fewer in range(count + 1 - more)]
    more, fewer = np.array(outcomes).T
    p = np.array([paired(*outcome, count, limit) for outcome in outcomes])
    order = p.argsort()
    for q in (limit + 1e-6, 0.1, 0.3, 0.7, 0.95, 0.985, 0.999):
        if q < limit:
            continue
        chance = stats.binom.pmf(more + fewer, count, q) * stats.binom.pmf(more, more + fewer, (q + limit) / (2 * q))
        below = chance[order].cumsum()
        last = np.append(np.diff(p[order]) > 1e-12, True)  # of equal p-values
        assert (below[last] <= p[order][last] * 1.001 + 1e-9).all()


def _paired_once(more: np.ndarray, fewer: np.ndarray, count: int, limit: float) -> np.ndarray:
    """The p-value of every draw, computed once for equal draws."""
    pairs, which = np.unique(np.stack([more, fewer]), axis=1, return_inverse=True)
    return np.array([paired(*pair, count, limit) for pair in pairs.T.tolist()])[which.ravel()]


def test_paired_at_the_edges():
    assert paired(7, 0, 7, 0.01) == 1  # all worse
    assert paired(0, 7, 7, 0.01) < 0.05  # all better
    assert paired(0, 0, 20_000, 0.01) == pytest.approx(SPARE)
    assert paired(0, 0, 10, 0.01) > 0.8


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("paired", (0.03, 0.01)),
        ("binomial", (0.02, 0.0)),
        ("bentkus", (0.02, 0.0)),
        pytest.param("paired", (0.02, 0.0), marks=slow),
        pytest.param("betting", (0.02, 0.0), marks=slow),
    ],
)
def test_under_the_null_small_p_values_are_rare(name, rates):
    """At the boundary of the null, the share of p-values up to u is at most u (and not far below for the exact tests)."""
    rng, count, limit, draws = np.random.default_rng(0), 500, 0.02, 4000
    p = {
        "paired": lambda x: _paired_once((x > 0).sum(1), (x < 0).sum(1), count, limit),
        "binomial": lambda x: binomial((x > 0).mean(1), count, limit),
        "bentkus": lambda x: hoeffding_bentkus(x.mean(1), count, limit),
        "betting": lambda x: betting(x, limit, 0.1),
    }[name]
    more, fewer = rates
    x = rng.choice([1.0, -1.0, 0.0], size=(draws, count), p=[more, fewer, 1 - more - fewer])
    found = p(x)
    for u in (0.05, 0.1, 0.2):
        share = (found <= u).mean()
        assert share <= u + 3 * math.sqrt(u * (1 - u) / draws)
        if name == "paired":
            assert share >= u / 3


def test_group_betting_without_any_loss():
    """Every group multiplies the wealth by the largest stake's factor: hardly more groups than an exact test needs."""
    p = [group_betting(np.zeros(count), 0.02, 0.1) for count in (100, 116, 120)]
    assert p[1] == pytest.approx((1 + SAFE * 0.02 / 0.98) ** -116, rel=0.01)
    assert p[0] > 0.1 > p[2]
    assert (1 - 0.02) ** 113 > 0.1  # by the exact test for 0 and 1
    assert group_betting(np.zeros(5), 1.0, 0.1) == 0
    assert group_betting(np.zeros(50), 0.0, 0.1) == 1
    assert group_betting(-np.ones(50) / 2, 0.0, 0.1) < 1e-3  # gains
    assert group_betting(np.ones(50), 0.3, 0.1) == 1


@pytest.mark.parametrize("kind", ["all the same", "half of a group", "rarely all of it", "with gains"])
def test_group_betting_under_the_null(kind):
    """Means of groups of 1 to 50 whose losses depend on each other, at the boundary."""
    rng, count, limit, draws = np.random.default_rng(1), 120, 0.05, 1500
    shape = (draws, count)
    sizes = rng.integers(1, 51, shape)
    means = {
        "all the same": (rng.random(shape) < limit) * 1.0,
        "half of a group": (rng.random(shape) < 2 * limit) * 0.5,
        "rarely all of it": rng.binomial(sizes, rng.beta(0.05, 0.95, shape)) / sizes,
        "with gains": (rng.random(shape) < 0.15) * 1.0 - (rng.random(shape) < 0.1),
    }[kind]
    p = np.array([group_betting(one, limit, 0.1) for one in means])
    for u in (0.05, 0.1, 0.2):
        assert (p <= u).mean() <= u + 3 * math.sqrt(u * (1 - u) / draws)
