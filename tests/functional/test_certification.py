"""The fixed-sequence test by hand, and the p-values against SciPy, by hand, and by what they promise under the null."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from exitlens.functional import certification
from exitlens.functional.risk import Risk
from exitlens.functional.search import Candidate, approximate_p_values, find_candidates, order_path

slow = pytest.mark.slow


def risk_of(losses: torch.Tensor, limit: float = 0.1, kind: str = "binary", rows: torch.Tensor | None = None) -> Risk:
    """One early exit with these losses, and the final one with none."""
    return Risk("r", torch.stack([losses, torch.zeros_like(losses)], 1), limit, kind, rows)


def candidate(cut: float = 0.0, loss: float = 0.0, count: int = 100, cost: float = 0.5) -> Candidate:
    """A vector whose losses have this mean and variance."""
    return Candidate((cut,), cost, (loss,), (loss,), (count,), (loss,))


def run_test(index: torch.Tensor, risks: list[Risk], *cuts: float, delta: float = 0.1) -> certification.SequenceResult:
    return certification.run_fixed_sequence_test(index, risks, [*map(candidate, cuts)], ["binomial"] * len(risks), delta)


def test_it_stops_before_the_first_failure_even_if_later_ones_would_pass():
    index = torch.arange(100)[:, None] // 20  # five levels of 20 samples
    losses = torch.zeros(100)
    losses[60:80] = 1  # level 3
    one = risk_of(losses)
    found = run_test(index, [one], 4.0, 3.0, 5.0)
    assert (found.cuts, found.steps, found.tests[0].mean, found.tests[0].samples) == ((4.0,), 2, 0, 100)
    assert found.tests[0].p_value == pytest.approx(0.9**100)
    assert run_test(index, [one], 3.0, 4.0).cuts is None
    assert run_test(index, [one], 4.0, 5.0).cuts == (5.0,)
    assert run_test(index, [one]).cuts is None


def test_every_risk_has_to_pass():
    index = torch.zeros(200, 1).long()
    good, bad = risk_of(torch.zeros(200)), risk_of((torch.arange(200) < 30).float())
    assert run_test(index, [good, good], 0.0).cuts == (0.0,)
    found = run_test(index, [good, bad], 0.0)
    assert found.cuts is None
    assert [one.p_value <= 0.1 for one in found.tests] == [True, False]
    empty = risk_of(torch.zeros(200), rows=torch.zeros(200, dtype=torch.bool))
    assert run_test(index, [empty], 0.0).cuts is None


def test_the_path_goes_from_safe_to_cheap_and_nothing_in_it_is_beaten():
    pool = [
        candidate(1.0, 0.001, 1000, 0.9),
        candidate(2.0, 0.004, 1000, 0.5),
        candidate(3.0, 0.006, 1000, 0.6),  # dearer and worse than the one before
        candidate(4.0, 0.009, 1000, 0.3),
        candidate(5.0, 0.2, 1000, 0.1),  # hopeless
    ]
    assert [one.cuts for one in order_path(pool, [0.01])] == [(1.0,), (2.0,), (4.0,)]
    assert len(order_path(pool, [0.01], max_length=2)) == 2


def test_the_approximate_p_value_has_a_floor_of_variance():
    few, many = (candidate(count=n) for n in (20, 2000))
    assert 0.2 < approximate_p_values(few, [0.01])[0] < 0.5
    assert approximate_p_values(many, [0.01])[0] < 0.01


def test_the_tighter_test_is_chosen_on_the_first_part():
    rng = torch.Generator().manual_seed(0)
    index = torch.zeros(600, 1).long()
    steady = Risk("r", torch.stack([0.04 + 0.01 * torch.rand(600, generator=rng), torch.zeros(600)], 1), 0.1, "unit")
    wild = risk_of((torch.rand(600, generator=rng) < 0.04).float(), 0.1, "unit")
    for one, expected in ((steady, "betting"), (wild, "hoeffding_bentkus")):
        path = [Candidate((0.0,), 0.5, (0.045,), (0.001,), (600,), (0.045,))]
        assert certification.choose_tests(index, [one], path, 600, 0.1) == (expected,)
    assert certification.choose_tests(index, [risk_of(torch.zeros(600))], [], 600, 0.1) == ("binomial",)


def test_ternary_losses_are_moved_into_the_unit_interval_for_betting():
    losses = torch.tensor([0.0, -1.0, 0.0, 1.0] + [0.0] * 400)
    one = risk_of(losses, 0.05, "ternary")
    assert 0 < certification.p_value(losses, one, "betting", 0.1) < 0.7
    assert certification.p_value(losses, one, "paired", 0.1) < 0.05


def test_samples_needed():
    one = risk_of(torch.zeros(100), 0.01)
    lossless = candidate(count=100)
    assert certification.estimate_samples_needed([one], [lossless], 0.1) == math.ceil(math.log(10) / -math.log(0.99)) == 230
    above = candidate(loss=0.02)
    assert certification.estimate_samples_needed([one], [above], 0.1) is None
    assert certification.estimate_samples_needed([one], [above, lossless], 0.1) == 230
    assert certification.estimate_samples_needed([one], [], 0.1) is None
    near = candidate(loss=0.005)
    assert certification.estimate_samples_needed([one], [near], 0.1) == pytest.approx(1.2816**2 * 0.005 / 0.005**2, rel=0.01)
    half = risk_of(torch.zeros(100), 0.01, rows=torch.arange(100) < 50)
    assert certification.estimate_samples_needed([half], [lossless], 0.1) == 459


def test_groups_needed():
    """Of groups of equal size as many as of samples, by the betting bound; a class of half of the groups twice as many."""
    groups, everyone = torch.arange(100) // 4, torch.arange(100)
    lossless = candidate(count=25)
    one = risk_of(torch.zeros(100), 0.01).with_groups(groups, everyone, equal=False)
    alone = math.log(10) / math.log1p(certification.SAFE * 0.01 / 0.99)
    assert certification.estimate_samples_needed([one], [lossless], 0.1) == math.ceil(alone) == 237
    half = risk_of(torch.zeros(100), 0.01, rows=groups < 13).with_groups(groups, everyone, equal=False)
    assert certification.estimate_samples_needed([half], [lossless], 0.1) == math.ceil(alone * 25 / 13)
    near = candidate(loss=0.005, count=25)
    assert certification.estimate_samples_needed([one], [near], 0.1) == math.ceil(2 * math.log(10) * 0.005 / 0.005**2)
    uneven = risk_of(torch.zeros(100), 0.01).with_groups(everyone.clamp_max(50), everyone, equal=False)
    assert certification.estimate_samples_needed([uneven], [lossless], 0.1) > 10 * alone


def test_correlated_groups_break_a_promise_that_counts_samples():
    """Groups of 1 to 20 answer alike; a tenth of them loses at the first level. Only naming them keeps the promise."""
    draws, limit, broken = 150, 0.095, {"named": 0, "not named": 0}
    for seed in range(draws):
        rng = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 21, (150,), generator=rng)
        groups = torch.arange(150).repeat_interleave(sizes)
        wrong = (torch.rand(150, generator=rng) < 0.1).float().repeat_interleave(sizes)
        index, plain = torch.zeros(len(groups), 1).long(), risk_of(wrong, limit)
        named = plain.with_groups(groups, torch.arange(len(groups)), equal=False)
        for name, risk, test in (("named", named, "group_betting"), ("not named", plain, "binomial")):
            broken[name] += certification.run_fixed_sequence_test(index, [risk], [candidate()], [test], 0.1).cuts is not None
    bound = 0.1 + 2 * math.sqrt(0.1 * 0.9 / draws)
    assert broken["named"] / draws <= bound
    assert broken["not named"] / draws > bound


def steep(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten levels; answering at level j and above is wrong for 4 % of level j only where j is 4 or less."""
    rng = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 10, (count,), generator=rng)
    wrong = (level <= 4) & (torch.rand(count, generator=rng) < 0.25)
    return level[:, None], wrong.float()


@pytest.mark.parametrize("delta", [0.1, pytest.param(0.2, marks=slow)])
def test_the_promise_is_kept_and_one_step_too_far_breaks_it(delta):
    """True risk of cut j: 0.025 for each level from j to 4; the limit of 3 % allows one such level (cut 4)."""
    draws, limit = 400, 0.03
    true = {cut: 0.025 * max(0, 5 - cut) for cut in range(10)}
    kept, too_far = 0, 0
    for seed in range(draws):
        index, wrong = steep(1500, seed)
        found = run_test(index, [risk_of(wrong, limit)], *range(9, -1, -1), delta=delta)
        cut = int(found.cuts[0]) if found.cuts else 10
        kept += cut < 10 and true[cut] > limit
        too_far += true[max(cut - 1, 0)] > limit
    bound = delta + 2 * math.sqrt(delta * (1 - delta) / draws)
    assert kept / draws <= bound
    assert too_far / draws > bound


def test_candidates_hold_the_frontier_steps_between_and_never_not():
    rng = torch.Generator().manual_seed(0)
    index = torch.randint(0, 30, (400, 2), generator=rng)
    losses = (torch.rand(400, 3, generator=rng) < torch.tensor([0.15, 0.05, 0.0])).float()
    risks = [Risk("a", losses, 0.05, "binary"), Risk("b", losses * 0.5, 0.05, "unit")]
    pool = find_candidates(index, risks, torch.tensor([0.2, 0.6, 1.0]))
    assert len(pool) > 5
    assert all(any(cut != math.inf for cut in one.cuts) for one in pool)
    assert all(one.means[1] == pytest.approx(one.means[0] / 2) for one in pool)
    assert len({one.cuts for one in pool}) == len(pool)


def test_losses_that_may_be_gains_are_tested_by_betting():
    rng = torch.Generator().manual_seed(0)
    index = torch.zeros(400, 1).long()
    some = torch.where(torch.rand(400, generator=rng) < 0.03, torch.rand(400, generator=rng) - 0.5, 0.0)
    one = risk_of(some, 0.05, "signed")
    (test,) = certification.choose_tests(index, [one], [candidate()], 400, 0.1)
    assert test == "signed_betting"
    assert certification.p_value(some, one, test, 0.1) < 1e-3
    assert certification.p_value(some, one, "betting", 0.1) <= 1
    lost = torch.full((400,), 0.06)
    assert certification.p_value(lost, risk_of(lost, 0.05, "signed"), test, 0.1) == 1
    assert certification.p_value(lost, risk_of(lost, 0.05, "signed"), "betting", 0.1) > 0.5


@pytest.mark.parametrize("test", ["signed_betting", "betting"])
def test_a_mean_at_the_limit_is_seldom_refused(test):
    """Losses in [-1, 1] with mean 0.1: of 300 draws a tenth, but for chance, may have a p-value of 0.1 or less."""
    rng = torch.Generator().manual_seed(1)
    low = 0
    for _ in range(300):
        half = torch.rand(150, generator=rng) < 0.5
        losses = torch.where(half, 0.2 + 0.8 * (torch.rand(150, generator=rng) - 0.5) * 2, 0.0)
        low += certification.p_value(losses, risk_of(losses, 0.1, "signed"), test, 0.1) <= 0.1
    assert low / 300 <= 0.1 + 2 * math.sqrt(0.09 / 300)


@pytest.mark.parametrize(("errors", "count"), [(0, 1), (0, 299), (3, 100), (70, 70), (1, 2), (40, 2000)])
def test_the_upper_bound_is_clopper_and_pearsons(errors, count):
    expected = 1.0 if errors == count else stats.binomtest(errors, count).proportion_ci(0.9).high
    assert certification.upper_bound(errors, count, 0.05) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 400), st.data(), st.floats(0.001, 0.5))
@settings(max_examples=60, deadline=None)
def test_binomial_is_scipys(count, data, limit):
    errors = data.draw(st.integers(0, count))
    expected = stats.binomtest(errors, count, limit, alternative="less").pvalue
    assert certification.binomial(errors / count, count, limit) == pytest.approx(expected, rel=1e-9)


def test_hoeffding_bentkus_by_hand():
    count, limit, mean = 100, 0.1, 0.02
    entropy = mean * math.log(mean / limit) + (1 - mean) * math.log((1 - mean) / (1 - limit))
    bentkus = math.e * stats.binom.cdf(2, count, limit)
    assert certification.hoeffding_bentkus(mean, count, limit) == pytest.approx(min(math.exp(-count * entropy), bentkus))
    assert certification.hoeffding_bentkus(0.5, count, limit) == 1
    assert certification.hoeffding_bentkus(0.0, count, limit) == pytest.approx(min(0.9**100, math.e * 0.9**100))
    assert certification.hoeffding_bentkus(0.0, 10, 0.0) == 1
    assert certification.hoeffding_bentkus(0.7, 10, 1.0) == 0


def test_betting_by_hand():
    losses, limit, level = np.array([0.0, 1.0, 0.0]), 0.5, 0.1
    wealth, best, total, square = 1.0, 1.0, 0.0, 0.25
    for i, x in enumerate(losses, 1):
        before = square / i if i > 1 else 0.25
        wealth *= 1 + min(1.0, math.sqrt(2 * math.log(1 / level) / (3 * before))) * (limit - x)
        best = max(best, wealth)
        total += x
        square += (x - (0.5 + total) / (1 + i)) ** 2
    assert certification.betting(losses, limit, level) == pytest.approx(1 / best)
    assert certification.betting(losses, 0.0, level) == 1
    assert certification.betting(losses, 1.0, level) == 0


def _exact(more: int, fewer: int, count: int, limit: float) -> float:
    """The same definition by SciPy, on a much finer grid, summed over every number of pairs that differ."""
    total, differ = more - fewer, more + fewer
    if total >= limit * count:
        return 1.0
    upper = 1.0 if differ == count else stats.binomtest(differ, count).proportion_ci(1 - 2 * certification.SPARE).high
    if upper <= limit:
        return certification.SPARE
    found = []
    for q in np.linspace(max(limit, 1e-12), upper, 60):
        m = np.arange(count + 1)
        ups = m[None, :]  # every outcome of more, for every number m of pairs that differ
        z = (2 * ups - m[:, None] - count * limit) / np.sqrt(m[:, None] + count * limit / 2 + 0.5)
        seen = (total - count * limit) / math.sqrt(differ + count * limit / 2 + 0.5)
        chance = np.where(z <= seen + 1e-9, stats.binom.pmf(ups, m[:, None], (q + limit) / (2 * q)), 0.0)
        found.append(float((stats.binom.pmf(m, count, q) * chance.sum(1)).sum()))
    return min(1.0, certification.SPARE + max(found))


@pytest.mark.parametrize("count", [5, 60, pytest.param(150, marks=slow)])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.1])
def test_paired_is_what_its_definition_says(count, limit):
    rng = np.random.default_rng(count)
    for _ in range(4):
        more, fewer = int(rng.integers(0, max(2, count // 10))), int(rng.integers(0, max(2, count // 8)))
        expected = pytest.approx(_exact(more, fewer, count, limit), rel=0.02, abs=2e-4)
        assert certification.paired(more, fewer, count, limit) == expected


@pytest.mark.parametrize(
    ("count", "limit"), [(25, 0.0), *(pytest.param(*case, marks=slow) for case in ((40, 0.05), (50, 0.0), (60, 0.01)))]
)
def test_paired_by_enumeration(count, limit):
    """Every outcome, many rates q: the probability of a p-value up to u is at most u (to 0.1 % of u, for the grid)."""
    outcomes = [(more, fewer) for more in range(count + 1) for fewer in range(count + 1 - more)]
    more, fewer = np.array(outcomes).T
    p = np.array([certification.paired(*outcome, count, limit) for outcome in outcomes])
    order = p.argsort()
    for q in (limit + 1e-6, 0.1, 0.3, 0.7, 0.95, 0.985, 0.999):
        if q < limit:
            continue
        chance = stats.binom.pmf(more + fewer, count, q) * stats.binom.pmf(more, more + fewer, (q + limit) / (2 * q))
        below = chance[order].cumsum()
        last = np.append(np.diff(p[order]) > 1e-12, True)  # of equal p-values
        assert (below[last] <= p[order][last] * 1.001 + 1e-9).all()


def test_paired_at_the_edges():
    assert certification.paired(7, 0, 7, 0.01) == 1  # all worse
    assert certification.paired(0, 7, 7, 0.01) < 0.05  # all better
    assert certification.paired(0, 0, 20_000, 0.01) == pytest.approx(certification.SPARE)
    assert certification.paired(0, 0, 10, 0.01) > 0.8
    for limit in np.arange(5, 20) / 100:  # rounding takes the rate at the null's boundary over the limit
        assert certification.paired(200, 200, 2000, limit) < 0.01


@pytest.mark.parametrize("name", ["binomial", "bentkus", pytest.param("betting", marks=slow)])
def test_under_the_null_small_p_values_are_rare(name):
    """At the boundary of the null, the share of p-values up to u is at most u."""
    rng, count, limit, draws = np.random.default_rng(0), 500, 0.02, 4000
    p = {
        "binomial": lambda x: np.array([certification.binomial(mean, count, limit) for mean in x.mean(1)]),
        "bentkus": lambda x: np.array([certification.hoeffding_bentkus(mean, count, limit) for mean in x.mean(1)]),
        "betting": lambda x: np.array([certification.betting(losses, limit, 0.1) for losses in x]),
    }[name]
    found = p(rng.choice([1.0, 0.0], size=(draws, count), p=[limit, 1 - limit]))
    for u in (0.05, 0.1, 0.2):
        share = (found <= u).mean()
        assert share <= u + 3 * math.sqrt(u * (1 - u) / draws)


def test_group_betting_without_any_loss():
    """Every group multiplies the wealth by the largest stake's factor: hardly more groups than an exact test needs."""
    p = [certification.group_betting(np.zeros(count), 0.02, 0.1) for count in (100, 116, 120)]
    assert p[1] == pytest.approx((1 + certification.SAFE * 0.02 / 0.98) ** -116, rel=0.01)
    assert p[0] > 0.1 > p[2]
    assert (1 - 0.02) ** 113 > 0.1  # by the exact test for 0 and 1
    assert certification.group_betting(np.zeros(5), 1.0, 0.1) == 0
    assert certification.group_betting(np.zeros(50), 0.0, 0.1) == 1
    assert certification.group_betting(-np.ones(50) / 2, 0.0, 0.1) < 1e-3  # gains
    assert certification.group_betting(np.ones(50), 0.3, 0.1) == 1


def test_a_bound_on_a_mean_by_hand():
    """Without any loss, betting ends where its largest stake no longer wins: near the exact bound, 1 - 0.1 ** (1 / 200)."""
    assert certification.bound_mean(np.zeros(200), 0.1) == pytest.approx(1 - 0.1 ** (1 / 200), abs=2e-3)
    assert certification.bound_mean(np.ones(200), 0.1) == 1
    assert certification.bound_mean(np.zeros(2), 0.1) > 0.6
    values = np.array([0.0, 0.5, 1.0, 0.0] * 100)
    bound = certification.bound_mean(values, 0.1)
    assert 0.375 < bound < 0.44
    assert certification.group_betting(values, bound, 0.1) <= 0.1 < certification.group_betting(values, bound - 1e-3, 0.1)


@slow
@pytest.mark.parametrize("share", [0.02, 0.15, 0.5])
def test_the_bound_is_seldom_below_the_mean(share):
    """Means of pairs whose two losses depend on one another, as those of samples that take from each other."""
    rng, draws, delta = np.random.default_rng(3), 1000, 0.1
    both = rng.random((draws, 200)) < share / 2
    each = rng.random((draws, 200, 2)) < (share / 2) / (1 - share / 2)
    values = np.where(both, 1.0, each.mean(2))
    refuted = [certification.group_betting(row, share, delta) <= delta for row in values]
    assert np.mean(refuted) <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    bounds = [certification.bound_mean(row, delta) for row in values[:40]]  # it is below the mean only where that is refuted
    assert all(told or bound > share - 1e-9 for bound, told in zip(bounds, refuted[:40], strict=True))
    assert all(bound < share + 0.3 for bound in bounds)


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
    p = np.array([certification.group_betting(one, limit, 0.1) for one in means])
    for u in (0.05, 0.1, 0.2):
        assert (p <= u).mean() <= u + 3 * math.sqrt(u * (1 - u) / draws)
