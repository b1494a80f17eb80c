"""How many audited losses end early answers, when the data have changed, and where thresholds go."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from exitlens.functional.adapting import LEAST, add_evidence, choose_thresholds, count_alike, find_largest_sum, find_most


@pytest.mark.parametrize(("limit", "window", "audit", "delta"), [(0.1, 1000, 0.1, 0.1), (0.02, 50_000, 0.05, 0.05)])
def test_early_answers_stop_as_late_as_the_promise_allows(limit, window, audit, delta):
    """More than B failures come before the r-th success exactly if B + r trials have fewer than r successes."""

    def broken(most):
        return sum(binom.cdf(m * most - 1, round(m * limit * window) + m * most, audit) for m in range(1, 60))

    most = find_most(limit, window, audit, delta)
    assert broken(most) <= delta < broken(most + 1)


@pytest.mark.parametrize("sizes", [(1.0,), (0.3,), (0.05, 1.0)])
def test_losses_of_any_size_stay_within_the_limit(sizes):
    """By brute force, where data lose as fast as they can until the audited losses reach the sum."""
    limit, window, audit, delta = 0.1, 1000, 0.1, 0.1
    most = find_largest_sum(limit, window, audit, delta)
    assert 1 < most < find_most(limit, window, audit, delta) + 1  # the exact number for losses 0 and 1 is not below it
    rng = np.random.default_rng(0)
    losses = rng.choice(sizes, (2000, 6000))
    audited = rng.random(losses.shape) < audit
    before = np.where(audited, losses, 0.0).cumsum(1) - np.where(audited, losses, 0.0)
    missed = np.where(~audited & (before <= most - 1), losses, 0.0).sum(1)
    assert (missed > limit * window).mean() <= delta
    assert missed.mean() > 0.25 * limit * window


def test_a_limit_that_nothing_can_be_promised_of_has_no_sum():
    assert find_largest_sum(0.01, 1000, 0.01, 0.1) < 1


@pytest.mark.parametrize("limit", [0.02, 0.3, 0.6])
def test_evidence_grows_with_losses_alone(limit):
    assert add_evidence(1.0, False, limit) < 1 < add_evidence(1.0, True, limit)
    assert add_evidence(0.0, False, limit) == 0
    assert add_evidence(5.2, True, limit) == math.inf
    halves = add_evidence(2.0, 0.5, limit)
    assert halves == pytest.approx((add_evidence(2.0, 0, limit) + add_evidence(2.0, 1, limit)) / 2)


def test_few_samples_are_alike_after_a_change_for_better_or_worse():
    better, worse = torch.zeros(400, 2), torch.ones(400, 2)
    assert count_alike(torch.cat([worse, better])) == count_alike(torch.cat([better, worse])) == LEAST
    assert count_alike(better) == 400
    assert count_alike(torch.cat([worse[:LEAST], better[: LEAST - 1]])) == 2 * LEAST - 1  # too few to tell


def test_thresholds_are_the_cheapest_within_the_risk():
    scores = torch.linspace(0, 1, 1000)[:, None].expand(-1, 2)
    losses = (scores < 0.6).float() * torch.tensor([1.0, 0.0])  # exit 1 is always right
    first, second = choose_thresholds(scores, losses, torch.tensor([0.2, 0.5, 1.0]), 0.1)
    assert first == pytest.approx(0.5, abs=0.03)  # a tenth of all is lost
    assert second == 0
    assert choose_thresholds(scores, torch.ones(1000, 2), torch.tensor([0.2, 0.5, 1.0]), 0.0) == (math.inf, math.inf)
