import itertools
import math

import pytest
import torch

from exitlens.functional.risk import accuracy_drop
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.thresholds import search
from exitlens.types import Policy
from tests.conftest import random_trace


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
    assert points == search.keep_undominated(points)
    assert points[-1].risk <= 0
