"""Levels, the frontier against brute force, and thresholds that held-out samples allow."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional import search
from exitlens.functional.risk import Risk, accuracy_drop, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.search import choose_by_folds, split_folds
from exitlens.types import Policy
from tests.conftest import random_trace, timed_trace


def test_levels_and_thresholds_route_alike():
    scores = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    for levels in (1000, 20):
        found = search.quantise(scores, levels)
        for cuts in ((0.0, 3.0, math.inf), (5.0, 0.0, 7.0), (2.0, math.inf, 1.0)):
            by_level = find_first_firing(found.index, cuts)
            by_score = find_first_firing(scores.double(), found.thresholds(cuts))
            assert by_level.tolist() == by_score.tolist()


@pytest.mark.parametrize("levels", [400, 50])
def test_scores_next_to_each_other_in_float32(levels):
    """Their middle is one of them, so two edges may be one; a router compares in float32 and has to do the same."""
    base = torch.tensor(0.7)
    steps = torch.arange(300).repeat_interleave(3)
    scores = (base + steps * torch.finfo(torch.float32).eps / 2)[:, None]
    found = search.quantise(scores, levels)
    for cut in range(0, len(found.edges[0]), 7):
        threshold = found.thresholds((float(cut),))[0]
        assert torch.equal(scores[:, 0] >= threshold, found.index[:, 0] >= cut)
    assert torch.equal(found.apply(scores), found.index)


def test_equal_scores_share_a_level():
    found = search.quantise(torch.tensor([[0.5], [0.5], [0.9], [0.1]]))
    assert found.index.flatten().tolist() == [1, 1, 2, 0]
    assert found.edges[0].tolist() == pytest.approx([0, 0.3, 0.7])


def test_costs_of_exits_and_costs_of_samples_at_exits():
    trace = random_trace(50)
    levels = search.quantise(score_early_exits(trace, Policy((0.5, 0.5))), 14)
    exits = find_first_firing(levels.index, (5.0, 7.0))
    each = trace.cost.expand(50, 3)
    assert search.average_cost(each, exits) == pytest.approx(search.average_cost(trace.cost, exits))
    risk = accuracy_drop(trace)
    assert search.find_frontier(levels.index, risk, each) == search.find_frontier(levels.index, risk, trace.cost)


def test_find_best_cut_by_hand():
    index = torch.tensor([3, 2, 1, 0])
    assert search.find_best_cut(index, torch.tensor([1.0, 1.0, -3.0, 1.0])) == 2
    assert search.find_best_cut(index, torch.tensor([-1.0, -1.0, -1.0, -1.0])) == math.inf


def _brute_force(index, risk, cost, limit):
    choices = [*range(int(index.max()) + 1), math.inf]
    points = (search.evaluate_cuts(index, risk, cost, cuts) for cuts in itertools.product(choices, repeat=index.shape[1]))
    return min((p for p in points if p.risk <= limit), key=lambda p: p.cost)


@pytest.mark.parametrize("seed", range(4))
def test_frontier_and_refinement_come_close_to_brute_force(seed):
    trace = random_trace(200, 3, 4, seed)
    levels = search.quantise(score_early_exits(trace, Policy((0.5, 0.5))), 14)
    risk, limit = accuracy_drop(trace), 0.02
    points = [p for p in search.find_frontier(levels.index, risk, trace.cost) if p.risk <= limit]
    start = min(points, key=lambda p: p.cost)
    allowed = lambda cuts: search.evaluate_cuts(levels.index, risk, trace.cost, cuts).risk <= limit  # noqa: E731
    best = search.refine(levels, risk, trace.cost, start, allowed)
    exact = _brute_force(levels.index, risk, trace.cost, limit)
    assert best.risk <= limit
    assert exact.cost <= best.cost <= exact.cost + 0.03


def test_frontier_is_sorted_and_ends_at_least_as_safe_as_never():
    trace = random_trace()
    index = search.quantise(score_early_exits(trace, Policy((0.5, 0.5)))).index
    points = search.find_frontier(index, accuracy_drop(trace), trace.cost)
    assert [p.cost for p in points] == sorted(p.cost for p in points)
    assert points == search.keep_undominated(points, lambda p: (p.cost, p.risk))
    assert points[-1].risk <= 0


def lose(trace: xl.Trace, policy: xl.Policy) -> float:
    return select_exits(accuracy_drop(trace), xl.route(trace, policy)).mean().item()


@pytest.mark.slow
def test_new_samples_lose_what_was_asked_for():
    """Without folds they lose more than the limit; with them about as much (means over ten calibrations)."""
    new, limit = random_trace(20_000, seed=99), 0.01
    traces, lost = [random_trace(400, seed=seed) for seed in range(10)], {}
    for folds in (None, 5):
        policies = [xl.calibrate(trace, max_accuracy_drop=limit, folds=folds) for trace in traces]
        lost[folds] = sum(lose(new, policy) for policy in policies) / 10
    assert lost[5] <= limit < 1.5 * limit < lost[None]


def test_by_hand():
    """One early exit; the surer half of each fold is right there, of the less sure half every second sample is not.

    Whichever fold proposes, the surer half may leave: a quarter of the held-out samples would lose beyond that.
    """
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6] * 16)[:, None]
    values = torch.zeros(64, 2)
    values[2::4, 0] = values[3::8, 0] = 1.0
    risk, cost, folds = Risk("max_disagreement", values, 0.1, "binary"), torch.tensor([0.5, 1.0]), torch.arange(64) // 32
    (threshold,), held = choose_by_folds(scores, [risk], cost, [], folds)
    assert 0.7 < threshold <= 0.8
    assert held == {"max_disagreement": 0.0}
    (threshold,), held = choose_by_folds(scores, [replace(risk, limit=0.4)], cost, [], folds)
    assert threshold <= 0.6
    assert held == {"max_disagreement": pytest.approx(0.375)}


def test_where_nothing_is_kept_the_exits_never_fire():
    """Any early answer differs from the final one's at random."""
    logits = torch.randn(60, 2, 9, generator=torch.Generator().manual_seed(0))
    trace = xl.Trace(logits, torch.zeros(60).long(), torch.zeros(60, 2), [0.5, 1.0])
    policy = xl.calibrate(trace, max_disagreement=0.0, folds=3)
    assert policy.thresholds == (math.inf,)
    assert policy.calibration.held_out == {"max_disagreement": 0.0}


def test_groups_stay_together():
    trace = replace(random_trace(60), groups=torch.arange(60) // 6)
    folds = split_folds(trace, 5, seed=3)
    assert sorted(folds.unique().tolist()) == list(range(5))
    assert all(len(folds[trace.groups == group].unique()) == 1 for group in range(10))
    assert folds.bincount().tolist() == [12] * 5
    assert xl.calibrate(trace, max_accuracy_drop=0.05, folds=5).calibration.request.folds == 5


@pytest.mark.slow
def test_every_class_within_a_cost():
    trace = random_trace(300)
    record = xl.calibrate(trace, max_class_accuracy_drop=0.1, max_cost=0.9, folds=4).calibration
    assert [name for name in record.held_out if name.startswith("max_class_accuracy_drop")] == list(record.held_out)
    assert len(record.held_out) == 4
    assert max(record.held_out.values()) <= 0.1
    assert xl.calibrate(trace, max_accuracy_drop=0.1).calibration.held_out is None
    assert record.cost <= 0.9


def test_a_class_that_one_fold_holds_alone():
    """It is no limit for the thresholds that the other folds choose."""
    labels = torch.zeros(40, dtype=torch.int64)
    labels[0] = 1
    trace = replace(random_trace(40, c=2), labels=labels)
    record = xl.calibrate(trace, max_class_accuracy_drop=0.5, folds=5).calibration
    assert len(record.held_out) == 2


def test_requests_that_cannot_be_met_on_held_out_samples():
    with pytest.raises(xl.errors.InputError, match="folds: got 301 for 300 samples"):
        xl.calibrate(random_trace(300), max_accuracy_drop=0.1, folds=301)
    message = r"keeps {'max_disagreement': 0.0} on held-out samples within max_cost 0.21"
    with pytest.raises(xl.errors.CalibrationError, match=message):
        xl.calibrate(random_trace(300), max_disagreement=0.0, max_cost=0.21, folds=3)


@pytest.mark.parametrize("limit", [0.13, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (0.15, 0.2, 0.25, 0.3))])
def test_a_looser_limit_is_not_refused_for_its_time(limit):
    """The cheapest step may take too long for one sample in ten where one before it does not."""
    record = xl.calibrate(timed_trace(200, seed=11), max_accuracy_drop=limit, max_ms=5.0, percentile=90, folds=5).calibration
    assert record.held_out["max_accuracy_drop"] <= limit


@pytest.mark.slow
def test_policies_that_a_budget_asks_for_are_proposed():
    """None may go to the final exit, which takes too long."""
    policy = xl.calibrate(timed_trace(400), max_accuracy_drop=0.2, max_ms=5.0, percentile=100, folds=5)
    assert policy.thresholds[1] == 0


def test_the_samples_keep_the_limit_themselves_too():
    trace = random_trace(100, seed=1)
    assert lose(trace, xl.calibrate(trace, max_accuracy_drop=0.2, folds=5)) <= 0.2 + 1e-6
