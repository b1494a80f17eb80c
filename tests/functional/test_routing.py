import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional.routing import find_first_firing, fires
from tests.conftest import random_trace


def test_an_exit_fires_at_its_threshold_and_never_at_infinity():
    assert fires(torch.tensor([0.5, 0.49, 0.51]), 0.5).tolist() == [True, False, True]
    assert not fires(torch.tensor([1.0]), math.inf).any()


@given(st.integers(0, 200), st.lists(st.one_of(st.floats(0, 1), st.just(math.inf)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_first_firing_equals_a_loop(seed, thresholds):
    scores = torch.rand(20, len(thresholds), generator=torch.Generator().manual_seed(seed))
    expected = [
        next((k for k, t in enumerate(thresholds) if row[k] >= t), len(thresholds)) for row in scores.double().tolist()
    ]
    assert find_first_firing(scores.double(), thresholds).tolist() == expected


def test_route_by_hand():
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.6, 0.4], [0.2, 0.8]]]))
    trace = xl.Trace(logits, None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]))
    assert xl.route(trace, xl.Policy((0.8,))).tolist() == [0, 1]
    assert xl.route(trace, xl.Policy((math.inf,))).tolist() == [1, 1]


def test_route_of_one_exit():
    trace = random_trace(k=1)
    assert xl.route(trace, xl.Policy(())).tolist() == [0] * len(trace)


def test_route_refuses_another_number_of_exits_or_network():
    trace = random_trace()
    with pytest.raises(xl.PolicyError, match="1 thresholds for 2 exits"):
        xl.route(trace, xl.Policy((0.5,)))
    named = xl.Trace(trace.logits, trace.labels, trace.divergence, trace.cost, network="aaaa")
    with pytest.raises(xl.PolicyError, match="calibrated for network bbbb"):
        xl.route(named, xl.Policy((0.5, 0.5), network="bbbb"))
