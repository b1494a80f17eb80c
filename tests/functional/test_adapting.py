"""What audited losses say of others, when the data have changed, and where thresholds go."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exitlens.functional.adapting import (
    LEAST,
    add_evidence,
    average,
    bound_losses,
    charge_audit,
    choose_thresholds,
    count_alike,
    count_effective,
    find_doubt,
    select_losses,
)
from exitlens.functional.routing import find_first_firing


@pytest.mark.parametrize("sizes", [(1.0,), (0.3,), (0.05, 1.0)])
@pytest.mark.parametrize("chances", [(0.1,), (0.05, 0.4)])
@pytest.mark.slow
def test_losses_that_nobody_audited_stay_within_the_bound_at_every_moment(sizes, chances):
    """By brute force: chances may differ, and losses have any size."""
    delta, bet, rng = 0.1, 0.025, np.random.default_rng(0)
    losses, chance = rng.choice(sizes, (3000, 2000)), rng.choice(chances, (3000, 2000))
    audited = rng.random(losses.shape) < chance
    charge = np.vectorize(lambda p: charge_audit(p, bet))(np.array(chances))
    charged = np.where(audited, losses * charge[np.searchsorted(chances, chance)], 0.0).cumsum(1)
    missed = np.where(audited, 0.0, losses).cumsum(1)
    bound = (charged - math.log(delta)) / bet
    assert bound[0, 0] == bound_losses(charged[0, 0], bet, delta)
    share = (missed > bound).any(1).mean()
    assert share <= delta + 0.01
    assert share > 0.01 or max(sizes) < 1  # it is not much larger than it has to be
    assert bound[:, -1].mean() < 1.6 * missed[:, -1].mean()


@given(st.floats(0.02, 0.999) | st.just(1.0), st.floats(0.1, 0.9))
def test_a_charge_makes_the_mean_factor_of_a_loss_one(chance, part):
    bet = -part * math.log1p(-chance) if chance < 1 else part
    charge = charge_audit(chance, bet)
    assert (1 - chance) * math.exp(bet) + chance * math.exp(-charge) == pytest.approx(1)
    assert charge_audit(chance, 1.01 * bet) + 1e-12 >= charge >= 0


def test_charges_and_bets_make_the_martingale_of_confseq():
    """The logarithm of what is compared with delta; written by confseq 0.0.11, which needs NumPy 1, with::

    betting_mart(audited, 0.1, lambdas_fn_positive=lambda x, m: np.zeros(len(x)), theta=0, trunc_scale=1,
                 lambdas_fn_negative=lambda x, m: np.full(len(x), (math.exp(0.06) - 1) / 0.1))
    """
    audited = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0])
    expected = [0.06, 0.12, -0.693123, -0.633123, -0.573123, -0.513123, -0.453123, -1.266245, -1.206245, -1.146245]
    ours = np.where(audited, -charge_audit(0.1, 0.06), 0.06).cumsum()
    assert ours == pytest.approx(np.array(expected), abs=1e-6)


def test_no_charge_is_enough_for_audits_that_are_too_rare():
    assert charge_audit(0.01, 0.02) == math.inf


@pytest.mark.parametrize("limit", [0.02, 0.3, 0.6])
def test_evidence_grows_with_losses_alone(limit):
    assert add_evidence(1.0, False, limit) < 1 < add_evidence(1.0, True, limit)
    assert add_evidence(0.0, False, limit) == 0
    assert add_evidence(5.2, True, limit) == math.inf
    halves = add_evidence(2.0, 0.5, limit)
    assert halves == pytest.approx((add_evidence(2.0, 0, limit) + add_evidence(2.0, 1, limit)) / 2)


@pytest.mark.parametrize("expected", [1e-12, 1 - 1e-16, 1.0])
def test_evidence_is_a_number_at_the_edges(expected):
    assert add_evidence(1.0, 1.0, expected) >= 0
    assert math.isfinite(add_evidence(1.0, 0.0, expected))
    assert 0 < charge_audit(1e-17, 6e-18) < math.inf


def test_few_samples_are_alike_after_a_change_for_better_or_worse():
    better, worse = torch.zeros(400, 2), torch.ones(400, 2)
    same = torch.ones(800)
    assert count_alike(torch.cat([worse, better]), same) == count_alike(torch.cat([better, worse]), same) == LEAST
    assert count_alike(better, same[:400]) == 400
    assert count_alike(torch.cat([worse[:LEAST], better[: LEAST - 1]]), same[:399]) == 2 * LEAST - 1  # too few to tell


def test_samples_of_little_weight_change_little():
    """Half of the late ones are lost, which stand for a fiftieth of all, as a fiftieth was before."""
    before, late = torch.zeros(400, 1), torch.zeros(200, 1)
    before[::50], late[::2] = 1, 1
    weights = torch.cat([torch.ones(400), torch.where(late[:, 0] > 0, 1.0, 49.0)])
    assert count_alike(torch.cat([before, late]), weights) == 600
    assert count_alike(torch.cat([before, late]), torch.ones(600)) == LEAST


def test_the_mean_and_number_of_weighted_values():
    assert average(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0])) == 0.25
    assert count_effective(torch.tensor([1.0, 3.0])) == pytest.approx(1.6)


def test_thresholds_are_the_cheapest_within_the_risk():
    scores = torch.linspace(0, 1, 1000)[:, None].expand(-1, 2)
    losses = (scores < 0.6).float() * torch.tensor([1.0, 0.0])  # exit 1 is always right
    first, second = choose_thresholds(scores, losses, torch.tensor([0.2, 0.5, 1.0]), 0.1, torch.ones(1000))
    assert first == pytest.approx(0.5, abs=0.03)  # a tenth of all is lost
    assert second == 0
    assert choose_thresholds(scores, torch.ones(1000, 2), torch.tensor([0.2, 0.5, 1.0]), 0.0, torch.ones(1000)) == (
        math.inf,
        math.inf,
    )


def test_weights_stand_for_samples_that_are_there_as_often():
    rng = torch.Generator().manual_seed(0)
    scores = torch.rand(300, 2, generator=rng)
    losses, times = (torch.rand(300, 2, generator=rng) > scores).float(), torch.randint(1, 5, (300,), generator=rng)
    cost = torch.tensor([0.2, 0.5, 1.0])
    weighted = choose_thresholds(scores, losses, cost, 0.2, times.float())
    every = choose_thresholds(
        scores.repeat_interleave(times, 0), losses.repeat_interleave(times, 0), cost, 0.2, torch.ones(int(times.sum()))
    )
    means = []
    for thresholds in (weighted, every):
        exits = find_first_firing(scores, thresholds)
        lost = select_losses(losses, exits)
        means.append((average(lost, times.float()), average(cost[exits], times.float())))
    assert all(lost <= 0.2 + 1e-6 for lost, _ in means)
    assert means[0][1] == pytest.approx(means[1][1], abs=0.02)


def test_the_doubtful_are_a_share_of_the_early_answers_next_to_the_thresholds():
    scores = torch.tensor([[0.9, 0.0], [0.5, 0.95], [0.2, 0.7], [0.1, 0.2]])
    weights = torch.tensor([1.0, 1.0, 2.0, 9.0])  # the last leaves nowhere
    assert find_doubt(scores, (0.5, 0.6), weights, 0.2) == pytest.approx(0.0)  # exit 0 takes the second, at its threshold
    assert find_doubt(scores, (0.6, 0.6), weights, 0.4) == pytest.approx(0.1)
    assert find_doubt(scores, (0.6, 0.6), weights, 0.6) == pytest.approx(0.3)
    assert find_doubt(scores, (2.0, 2.0), weights, 0.4) == math.inf
