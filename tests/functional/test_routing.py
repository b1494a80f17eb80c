"""The gate by hand, and that the weights are those of least squares."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional import routing
from exitlens.functional.maps import divergence
from tests.conftest import random_trace


def trace_with_gate_features(n: int = 400) -> xl.Trace:
    """Divergence is a known function of the gate features, and of chance."""
    base, rng = random_trace(n), torch.Generator().manual_seed(7)
    gate_features = torch.rand(n, 2, 2, generator=rng)
    gate_features[:, 0, 1] = 0
    sure = base.logits[:, :2].softmax(2).amax(2)
    noise = 0.01 * torch.randn(n, 2, generator=rng)
    spread = 0.3 - 0.2 * sure + 0.1 * gate_features[..., 0] + 0.4 * gate_features[..., 1] + noise
    both = torch.cat([spread.clamp(0, 1), torch.zeros(n, 1)], 1)
    return replace(base, divergence=both, gate_features=gate_features)


def test_gate_features_by_hand():
    one = torch.tensor([[[0.25, 0.25], [0.25, 0.25]], [[1.0, 0.0], [0.0, 0.0]]])
    assert routing.compute_gate_features(one, None).tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]
    fine = torch.zeros(2, 4, 4)
    fine[:, 0, 0] = 1
    change = routing.compute_gate_features(one, fine)[:, 1]
    assert change[1].item() == pytest.approx(0, abs=1e-6)  # the fine map, made coarse, is the same
    assert change[0].item() == pytest.approx(divergence(one[:1], one[1:]).item(), abs=1e-6)
    text = routing.compute_gate_features(torch.tensor([[0.5, 0.5, 0.0]]), None)
    assert text[0, 0].item() == pytest.approx(math.log(2) / math.log(3))


def test_estimate_and_trust_by_hand():
    gate = xl.types.Gate(((-0.5, 0.2, 1.0, 0.4),), (0.3,))
    found = routing.estimate(gate, 0, torch.tensor([0.8, 0.2, 1.0]), torch.tensor([[0.5, 0.1], [1.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([0.2, 1.0, 0.0])
    assert routing.mask_untrusted(torch.tensor([0.9, 0.8, 0.7]), found, 0.3).tolist() == pytest.approx([0.9, 0.0, 0.7])


def test_the_weights_are_those_of_least_squares():
    trace, rows = trace_with_gate_features(), torch.arange(300)
    gate = routing.fit_gate(trace, rows, (1.0, 1.0, 1.0))
    assert gate.limits == (math.inf, math.inf)
    sure = trace.logits[:300, 1].softmax(1).amax(1)
    x = torch.cat([sure[:, None], trace.gate_features[:300, 1], torch.ones(300, 1)], 1).double().numpy()
    expected = np.linalg.lstsq(x, trace.divergence[:300, 1].double().numpy(), rcond=None)[0]
    assert gate.weights[1] == pytest.approx(expected.tolist(), abs=2e-3)
    estimates = routing.estimate_trace(trace, (1.0,) * 3, gate)
    assert np.corrcoef(estimates[300:, 1], trace.divergence[300:, 1])[0, 1] > 0.95


def test_limits_trust_the_share_asked_for():
    trace = trace_with_gate_features()
    gate = routing.fit_gate(trace, torch.arange(400), (1.0,) * 3)
    estimates = routing.estimate_trace(trace, (1.0,) * 3, gate)
    for share in (0.5, 0.8):
        limits = routing.limit_gate(gate, estimates, share).limits
        for k in range(2):
            assert (estimates[:, k] <= limits[k]).float().mean().item() == pytest.approx(share, abs=0.01)
    assert routing.limit_gate(gate, estimates, 1.0) is gate


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_distrust_only_a_threshold_of_0_overrides(limits, threshold):
    trace = trace_with_gate_features(50)
    gate = xl.types.Gate(routing.fit_gate(trace, torch.arange(50), (1.0,) * 3).weights, tuple(limits))
    estimates = routing.estimate_trace(trace, (1.0,) * 3, gate)
    exits = xl.route(trace, xl.Policy((threshold, threshold), gate=gate))
    for k in range(2):
        assert (estimates[exits == k, k] <= limits[k]).all()
    assert xl.route(trace, xl.Policy((0.0, 0.5), gate=gate)).eq(0).all()
    gated, plain = (routing.score_early_exits(trace, xl.Policy((0.5, 0.5), gate=value)) for value in (gate, None))
    assert (gated <= plain).all()


def test_bad_gates_and_traces():
    for weights, message in (
        (((1.0, 2.0),), "a limit and 4 weights"),
        (((math.nan, 0, 0, 0),), "finite weights"),
        ("x", "rows of numbers"),
    ):
        with pytest.raises(xl.errors.PolicyError, match=message):
            xl.types.Gate(weights, (0.5,))
    with pytest.raises(xl.errors.PolicyError, match="gate: expected a Gate for 2 early exits"):
        xl.Policy((0.5, 0.5), gate=xl.types.Gate(((0, 0, 0, 0),), (0.5,)))
    gate = xl.types.Gate(((0, 0, 0, 0),) * 2, (0.5, math.inf))
    with pytest.raises(xl.errors.InputError, match="needs gate_features and this trace has none"):
        xl.route(random_trace(20), xl.Policy((0.5, 0.5), gate=gate))
    with pytest.raises(xl.errors.InputError, match="gate_features: expected"):
        xl.Trace(torch.zeros(2, 2, 2), None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]), gate_features=torch.zeros(2, 2, 2))


@given(st.integers(0, 200), st.lists(st.one_of(st.floats(0, 1), st.just(math.inf)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_first_firing_equals_a_loop(seed, thresholds):
    scores = torch.rand(20, len(thresholds), generator=torch.Generator().manual_seed(seed))
    rows = scores.double().tolist()
    expected = [next((k for k, t in enumerate(thresholds) if row[k] >= t), len(thresholds)) for row in rows]
    assert routing.find_first_firing(scores.double(), thresholds).tolist() == expected


def test_route_by_hand():
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.6, 0.4], [0.2, 0.8]]]))
    trace = xl.Trace(logits, None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]))
    assert xl.route(trace, xl.Policy((0.8,))).tolist() == [0, 1]
    assert xl.route(trace, xl.Policy((math.inf,))).tolist() == [1, 1]
    assert not xl.route(random_trace(k=1), xl.Policy(())).any()
    with pytest.raises(xl.errors.PolicyError, match="2 thresholds for 3 exits"):
        xl.route(trace, xl.Policy((0.5, 0.5)))
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network bbbb"):
        xl.route(replace(trace, network="aaaa"), xl.Policy((0.5,), network="bbbb"))


GATE = xl.types.Gate(((0.0, 1.0, 0.0, 0.0),) * 2, (0.5, 0.2))  # the estimate is the first gate feature


def test_heads_that_several_policies_need():
    never, late = math.inf, xl.Policy((math.inf, math.inf, 0.5))
    assert routing.cover([late]).thresholds == (never, never, 0.0)
    assert routing.cover([late, xl.Policy((0.9, never, never), "margin")]).thresholds == (0.0, never, 0.0)
    assert routing.cover([xl.Policy.never(4)]).thresholds == (never,) * 3
    gated = xl.Policy((never, 0.5, never), gate=xl.types.Gate(((0.0,) * 4,) * 3, (1.0,) * 3))
    assert routing.cover([xl.Policy.never(4), gated]).thresholds == (0.0, 0.0, never)  # a gate needs the maps before
    assert routing.cover([xl.Policy(())]).thresholds == ()


def test_a_decision_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.55, 0.45]])
    scores = p.amax(1)
    plain = routing.decide(xl.Policy((0.7, 0.5)), 0, p, scores, None)
    assert plain.estimates is None
    assert plain.scores is scores
    assert plain.fired.tolist() == [True, True, False]
    gate_features = torch.tensor([[0.6, 0.0], [0.4, 0.0], [0.1, 0.0]])
    gated = routing.decide(xl.Policy((0.7, 0.5), gate=GATE), 0, p, scores, gate_features)
    assert gated.estimates.tolist() == pytest.approx([0.6, 0.4, 0.1])
    assert gated.scores.tolist() == pytest.approx([0.0, 0.8, 0.55])
    assert gated.fired.tolist() == [False, True, False]
    assert routing.decide(xl.Policy((0.0, 0.5), gate=GATE), 0, p, scores, gate_features).fired.all()  # 0: always
    assert not routing.decide(xl.Policy((0.7, math.inf), gate=GATE), 1, p, scores, gate_features).fired.any()


@pytest.mark.parametrize(
    ("thresholds", "plain", "gated"),
    [
        ((0.5, 0.5), [True, True, True], [True, True, True]),
        ((0.5, math.inf), [True, False, True], [True, False, True]),
        ((math.inf, 0.5), [False, True, True], [True, True, True]),  # its map is a gate feature of the next
        ((math.inf, math.inf), [False, False, True], [False, False, True]),
        ((2.0, 2.0), [True, True, True], [True, True, True]),  # never reached, but computed
    ],
)
def test_heads_that_are_computed(thresholds, plain, gated):
    for gate, expected in ((None, plain), (GATE, gated)):
        assert [routing.needs_head(xl.Policy(thresholds, gate=gate), k) for k in range(3)] == expected
    assert routing.needs_head(xl.Policy(()), 0)


def test_the_policy_on_paper_decides_by_the_same_rule():
    base = random_trace()
    gate_features = torch.rand(len(base), 2, 2, generator=torch.Generator().manual_seed(1))
    trace = replace(base, gate_features=gate_features)
    policy = xl.Policy((0.6, 0.5), "entropy", (2.0, 1.0, 1.0), gate=GATE)
    p = (trace.logits[:, 0] / 2).softmax(1)
    scores = 1 + (p * p.log()).sum(1) / math.log(p.shape[1])
    expected = torch.where(gate_features[:, 0, 0] <= 0.5, scores, 0)
    torch.testing.assert_close(routing.score_early_exits(trace, policy)[:, 0], expected)
    assert (xl.route(trace, policy) == 0).tolist() == (expected >= 0.6).tolist()
