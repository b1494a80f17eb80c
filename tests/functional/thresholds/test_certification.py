"""The fixed-sequence test by hand, the order of the path, and that one step further would break the promise."""

import math

import pytest
import torch

from exitlens.functional.risk import Risk
from exitlens.functional.thresholds.certification import (
    SAFE,
    choose_tests,
    estimate_samples_needed,
    p_value,
    run_fixed_sequence_test,
)
from exitlens.functional.thresholds.path import Candidate, approximate_p_values, find_candidates, order_path


def risk_of(losses: torch.Tensor, limit: float = 0.1, kind: str = "binary", rows: torch.Tensor | None = None) -> Risk:
    """One early exit with these losses, and the final one with none."""
    return Risk("r", torch.stack([losses, torch.zeros_like(losses)], 1), limit, kind, rows)


def path_of(*cuts: float) -> list[Candidate]:
    return [Candidate((cut,), 0.5, (0.0,), (0.0,), (1,), (0.0,)) for cut in cuts]


def test_it_stops_before_the_first_failure_even_if_later_ones_would_pass():
    index = torch.arange(100)[:, None] // 20  # five levels of 20 samples
    losses = torch.zeros(100)
    losses[60:80] = 1  # level 3
    one = risk_of(losses)
    found = run_fixed_sequence_test(index, [one], path_of(4.0, 3.0, 5.0), ["binomial"], 0.1)
    assert (found.cuts, found.steps, found.tests[0].mean, found.tests[0].samples) == ((4.0,), 2, 0, 100)
    assert found.tests[0].p_value == pytest.approx(0.9**100)
    assert run_fixed_sequence_test(index, [one], path_of(3.0, 4.0), ["binomial"], 0.1).cuts is None
    assert run_fixed_sequence_test(index, [one], path_of(4.0, 5.0), ["binomial"], 0.1).cuts == (5.0,)
    assert run_fixed_sequence_test(index, [one], [], ["binomial"], 0.1).cuts is None


def test_every_risk_has_to_pass():
    index = torch.zeros(200, 1).long()
    good, bad = risk_of(torch.zeros(200)), risk_of((torch.arange(200) < 30).float())
    assert run_fixed_sequence_test(index, [good, good], path_of(0.0), ["binomial"] * 2, 0.1).cuts == (0.0,)
    found = run_fixed_sequence_test(index, [good, bad], path_of(0.0), ["binomial"] * 2, 0.1)
    assert found.cuts is None
    assert [one.p_value <= 0.1 for one in found.tests] == [True, False]
    empty = risk_of(torch.zeros(200), rows=torch.zeros(200, dtype=torch.bool))
    assert run_fixed_sequence_test(index, [empty], path_of(0.0), ["binomial"], 0.1).cuts is None


def test_the_path_goes_from_safe_to_cheap_and_nothing_in_it_is_beaten():
    pool = [
        Candidate((1.0,), 0.9, (0.001,), (0.001,), (1000,), (0.001,)),
        Candidate((2.0,), 0.5, (0.004,), (0.004,), (1000,), (0.004,)),
        Candidate((3.0,), 0.6, (0.006,), (0.006,), (1000,), (0.006,)),  # dearer and worse than the one before
        Candidate((4.0,), 0.3, (0.009,), (0.009,), (1000,), (0.009,)),
        Candidate((5.0,), 0.1, (0.2,), (0.1,), (1000,), (0.2,)),  # hopeless
    ]
    assert [one.cuts for one in order_path(pool, [0.01])] == [(1.0,), (2.0,), (4.0,)]
    assert len(order_path(pool, [0.01], most=2)) == 2


def test_the_approximate_p_value_has_a_floor_of_variance():
    few, many = (Candidate((0.0,), 0.5, (0.0,), (0.0,), (n,), (0.0,)) for n in (20, 2000))
    assert 0.2 < approximate_p_values(few, [0.01])[0] < 0.5
    assert approximate_p_values(many, [0.01])[0] < 0.01


def test_the_tighter_test_is_chosen_on_the_first_part():
    rng = torch.Generator().manual_seed(0)
    index = torch.zeros(600, 1).long()
    steady = Risk("r", torch.stack([0.04 + 0.01 * torch.rand(600, generator=rng), torch.zeros(600)], 1), 0.1, "unit")
    wild = risk_of((torch.rand(600, generator=rng) < 0.04).float(), 0.1, "unit")
    for one, expected in ((steady, "betting"), (wild, "hoeffding_bentkus")):
        path = [Candidate((0.0,), 0.5, (0.045,), (0.001,), (600,), (0.045,))]
        assert choose_tests(index, [one], path, 600, 0.1) == (expected,)
    assert choose_tests(index, [risk_of(torch.zeros(600))], [], 600, 0.1) == ("binomial",)


def test_ternary_losses_are_moved_into_the_unit_interval_for_betting():
    losses = torch.tensor([0.0, -1.0, 0.0, 1.0] + [0.0] * 400)
    one = risk_of(losses, 0.05, "ternary")
    assert 0 < p_value(losses, one, "betting", 0.1) < 0.7
    assert p_value(losses, one, "paired", 0.1) < 0.05


def test_samples_needed():
    one = risk_of(torch.zeros(100), 0.01)
    lossless = Candidate((0.0,), 0.5, (0.0,), (0.0,), (100,), (0.0,))
    assert estimate_samples_needed([one], [lossless], 0.1) == math.ceil(math.log(10) / -math.log(0.99)) == 230
    above = Candidate((0.0,), 0.5, (0.02,), (0.02,), (100,), (0.02,))
    assert estimate_samples_needed([one], [above], 0.1) is None
    assert estimate_samples_needed([one], [above, lossless], 0.1) == 230
    assert estimate_samples_needed([one], [], 0.1) is None
    near = Candidate((0.0,), 0.5, (0.005,), (0.005,), (100,), (0.005,))
    assert estimate_samples_needed([one], [near], 0.1) == pytest.approx(1.2816**2 * 0.005 / 0.005**2, rel=0.01)
    half = risk_of(torch.zeros(100), 0.01, rows=torch.arange(100) < 50)
    assert estimate_samples_needed([half], [lossless], 0.1) == 459


def test_groups_needed():
    """Of groups of equal size as many as of samples, by the betting bound; a class of half of the groups twice as many."""
    groups, everyone = torch.arange(100) // 4, torch.arange(100)
    lossless = Candidate((0.0,), 0.5, (0.0,), (0.0,), (25,), (0.0,))
    one = risk_of(torch.zeros(100), 0.01).name_groups(groups, everyone, equal=False)
    alone = math.log(10) / math.log1p(SAFE * 0.01 / 0.99)
    assert estimate_samples_needed([one], [lossless], 0.1) == math.ceil(alone) == 237
    half = risk_of(torch.zeros(100), 0.01, rows=groups < 13).name_groups(groups, everyone, equal=False)
    assert estimate_samples_needed([half], [lossless], 0.1) == math.ceil(alone * 25 / 13)
    near = Candidate((0.0,), 0.5, (0.005,), (0.005,), (25,), (0.005,))
    assert estimate_samples_needed([one], [near], 0.1) == math.ceil(2 * math.log(10) * 0.005 / 0.005**2)
    uneven = risk_of(torch.zeros(100), 0.01).name_groups(everyone.clamp_max(50), everyone, equal=False)
    assert estimate_samples_needed([uneven], [lossless], 0.1) > 10 * alone


def test_correlated_groups_break_a_promise_that_counts_samples():
    """Groups of 1 to 20 answer alike; a tenth of them loses at the first level. Only naming them keeps the promise."""
    draws, limit, broken = 150, 0.095, {"named": 0, "not named": 0}
    for seed in range(draws):
        rng = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 21, (150,), generator=rng)
        groups = torch.arange(150).repeat_interleave(sizes)
        wrong = (torch.rand(150, generator=rng) < 0.1).float().repeat_interleave(sizes)
        index, plain = torch.zeros(len(groups), 1).long(), risk_of(wrong, limit)
        named = plain.name_groups(groups, torch.arange(len(groups)), equal=False)
        for name, risk, test in (("named", named, "group_betting"), ("not named", plain, "binomial")):
            broken[name] += run_fixed_sequence_test(index, [risk], path_of(0.0), [test], 0.1).cuts is not None
    bound = 0.1 + 2 * math.sqrt(0.1 * 0.9 / draws)
    assert broken["named"] / draws <= bound
    assert broken["not named"] / draws > bound


def steep(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten levels; answering at level j and above is wrong for 4 % of level j only where j is 4 or less."""
    rng = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 10, (count,), generator=rng)
    wrong = (level <= 4) & (torch.rand(count, generator=rng) < 0.25)
    return level[:, None], wrong.float()


@pytest.mark.parametrize("delta", [0.1, pytest.param(0.2, marks=pytest.mark.slow)])
def test_the_promise_is_kept_and_one_step_too_far_breaks_it(delta):
    """True risk of cut j: 0.025 for each level from j to 4; the limit of 3 % allows one such level (cut 4)."""
    draws, limit = 400, 0.03
    true = {cut: 0.025 * max(0, 5 - cut) for cut in range(10)}
    kept, too_far = 0, 0
    path = path_of(*[float(cut) for cut in range(9, -1, -1)])
    for seed in range(draws):
        index, wrong = steep(1500, seed)
        found = run_fixed_sequence_test(index, [risk_of(wrong, limit)], path, ["binomial"], delta)
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
    (test,) = choose_tests(index, [one], path_of(0.0), 400, 0.1)
    assert test == "signed_betting"
    assert p_value(some, one, test, 0.1) < 1e-3
    assert p_value(some, one, "betting", 0.1) <= 1
    lost = torch.full((400,), 0.06)
    assert p_value(lost, risk_of(lost, 0.05, "signed"), test, 0.1) == 1
    assert p_value(lost, risk_of(lost, 0.05, "signed"), "betting", 0.1) > 0.5


@pytest.mark.parametrize("test", ["signed_betting", "betting"])
def test_a_mean_at_the_limit_is_seldom_refused(test):
    """Losses in [-1, 1] with mean 0.1: of 300 draws a tenth, but for chance, may have a p-value of 0.1 or less."""
    rng = torch.Generator().manual_seed(1)
    low = 0
    for _ in range(300):
        half = torch.rand(150, generator=rng) < 0.5
        losses = torch.where(half, 0.2 + 0.8 * (torch.rand(150, generator=rng) - 0.5) * 2, 0.0)
        low += p_value(losses, risk_of(losses, 0.1, "signed"), test, 0.1) <= 0.1
    assert low / 300 <= 0.1 + 2 * math.sqrt(0.09 / 300)
