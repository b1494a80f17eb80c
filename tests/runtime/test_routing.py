"""The decision rule is the library's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional.answers import summarise
from exitlens.functional.maps import place as place_in_torch
from exitlens.functional.pixels import resize_logits
from exitlens.functional.routing import decide, needs_head, route, stack_support
from exitlens.functional.scores import score
from exitlens.types.tasks import CONTINUOUS, SCORES_OF
from exitlens_runtime import routing
from exitlens_runtime.routing import enlarge, place

thresholds = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.5, math.inf])


@given(
    seed=st.integers(0, 99),
    limits=st.tuples(thresholds, thresholds),
    kind=st.sampled_from(routing.SCORES),
    hot=st.sampled_from([0.3, 1.0, 4.0]),
    gated=st.booleans(),
)
@settings(deadline=None, max_examples=100)
@pytest.mark.slow
def test_the_decision_rule_is_the_librarys(seed, limits, kind, hot, gated):
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(30, 3, 5, generator=rng)
    support = [torch.randn(30, 3, generator=rng) for _ in range(3)]
    gate = xl.types.Gate(((0.5, 0.2, 0.1, 0.4, -1.0),) * 2, (0.5, 0.4)) if gated else None
    policy = xl.Policy(limits, kind, (hot, 1.0, 1.0), gate=gate)
    trace = xl.Trace(logits, None, torch.zeros(30, 3), torch.arange(1.0, 4), gate_features=stack_support(support))
    copied, exits = routing.Policy.from_dict(policy.to_dict()), np.full(30, 2)
    for k in (1, 0):
        p = routing.find_probabilities(logits[:, k].numpy(), copied.temperatures[k])
        decision = routing.decide(copied, k, p, support[k].numpy())
        exits[decision.fired] = k
        scores = score(logits[:, k], kind, copied.temperatures[k])
        refused = decide(policy, k, torch.from_numpy(p), scores, support[k]).refused
        assert (decision.refused is None) == (refused is None)
        assert refused is None or decision.refused.tolist() == refused.tolist()
    assert [copied.needs(k) for k in range(3)] == [needs_head(policy, k) for k in range(3)]
    assert exits.tolist() == route(trace, policy).tolist()


@given(seed=st.integers(0, 99), kind=st.sampled_from(routing.SCORES), hot=st.sampled_from([0.1, 1.0, 7.0]))
@settings(deadline=None, max_examples=50)
def test_scores_are_the_librarys(seed, kind, hot):
    logits = 20 * torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    p = routing.find_probabilities(logits.numpy(), hot)
    assert np.allclose(routing.find_score(p, kind), score(logits, kind, hot).numpy(), atol=1e-6)


@given(
    seed=st.integers(0, 99),
    limits=st.tuples(thresholds, thresholds, thresholds),
    task=st.sampled_from(CONTINUOUS),
    place=st.sampled_from([0, 1]),
)
@settings(deadline=None, max_examples=30)
def test_numbers_and_vectors_leave_where_they_do_in_the_library(seed, limits, task, place):
    logits = torch.randn(30, 4, 4, generator=torch.Generator().manual_seed(seed))
    logits[..., 3] = logits[..., 3].exp()
    logits[:5, 2] = logits[:5, 1]  # no change
    policy = xl.Policy(limits, SCORES_OF[task][place])
    summary = summarise(logits.unbind(1), task, ())
    trace = xl.Trace(summary, None, torch.zeros(30, 4), torch.arange(1.0, 5), task=task)
    copied, exits, before = routing.Policy.from_dict(policy.to_dict()), np.full(30, 3), None
    for k in range(3):
        p = routing.find_probabilities(logits[:, k].numpy(), 1.0, copied.score)
        if copied.score in routing.CHANGE_SCORES:
            p = before = routing.compare_with(p, before, copied.score)
        decision = routing.decide(copied, k, p, np.zeros((30, 3)))
        assert np.allclose(decision.scores, summary.scores[:, k, place].numpy(), atol=1e-6)
        exits[decision.fired & (exits == 3)] = k
    assert [copied.needs(k) for k in range(4)] == [needs_head(policy, k) for k in range(4)]
    assert exits.tolist() == route(trace, policy).tolist()


def test_scores_by_task_are_the_librarys():
    assert dict(SCORES_OF) == routing.SCORES_OF


@pytest.mark.parametrize("kind", routing.PIXEL_SCORES)
def test_scores_of_pixels_are_the_librarys(kind):
    logits = 5 * torch.randn(6, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    p = routing.find_probabilities(logits.numpy(), 1.0, kind)
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    found = routing.find_score(p, kind)
    assert found.dtype == np.float32
    assert np.allclose(found, score(logits, kind).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (20, 21), (9, 7), (3, 4), (1, 1)])
def test_logits_are_enlarged_as_in_the_library(size):
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert np.allclose(enlarge(logits.numpy(), size), resize_logits(logits, size).numpy(), atol=1e-6)


def test_maps_are_placed_as_in_the_library():
    maps = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0))
    for offset in ((0.0, 0.0), (0.5, 0.25), (-1.5, 0.0)):
        assert np.allclose(place(maps.numpy(), offset), place_in_torch(maps, offset).numpy(), atol=1e-6)
