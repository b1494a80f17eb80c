"""The gate by hand, and that the weights are those of least squares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional.gating import compute_gate_features, estimate, estimate_trace, fit_gate, limit_gate, mask_untrusted
from exitlens.functional.routing import score_early_exits
from exitlens.functional.similarity import divergence
from tests.conftest import random_trace


def trace_with_gate_features(n: int = 400) -> xl.Trace:
    """Divergence is a known function of the gate features, and of chance."""
    base, rng = random_trace(n), torch.Generator().manual_seed(7)
    gate_features = torch.rand(n, 2, 2, generator=rng)
    gate_features[:, 0, 1] = 0
    sure = base.logits[:, :2].softmax(2).amax(2)
    spread = (
        0.3
        - 0.2 * sure
        + 0.1 * gate_features[..., 0]
        + 0.4 * gate_features[..., 1]
        + 0.01 * torch.randn(n, 2, generator=rng)
    )
    both = torch.cat([spread.clamp(0, 1), torch.zeros(n, 1)], 1)
    return xl.Trace(base.logits, base.labels, both, base.cost, gate_features=gate_features)


def test_gate_features_by_hand():
    one = torch.tensor([[[0.25, 0.25], [0.25, 0.25]], [[1.0, 0.0], [0.0, 0.0]]])
    assert compute_gate_features(one, None).tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]
    fine = torch.zeros(2, 4, 4)
    fine[:, 0, 0] = 1
    change = compute_gate_features(one, fine)[:, 1]
    assert change[1].item() == pytest.approx(0, abs=1e-6)  # the fine map, made coarse, is the same
    assert change[0].item() == pytest.approx(divergence(one[:1], one[1:]).item(), abs=1e-6)
    assert compute_gate_features(torch.tensor([[0.5, 0.5, 0.0]]), None)[0, 0].item() == pytest.approx(
        math.log(2) / math.log(3)
    )


def test_estimate_and_trust_by_hand():
    gate = xl.Gate(((-0.5, 0.2, 1.0, 0.4),), (0.3,))
    found = estimate(gate, 0, torch.tensor([0.8, 0.2, 1.0]), torch.tensor([[0.5, 0.1], [1.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([0.2, 1.0, 0.0])
    assert mask_untrusted(torch.tensor([0.9, 0.8, 0.7]), found, 0.3).tolist() == pytest.approx([0.9, 0.0, 0.7])


def test_the_weights_are_those_of_least_squares():
    trace, rows = trace_with_gate_features(), torch.arange(300)
    gate = fit_gate(trace, rows, (1.0, 1.0, 1.0))
    assert gate.limits == (math.inf, math.inf)
    sure = trace.logits[:300, 1].softmax(1).amax(1)
    x = torch.cat([sure[:, None], trace.gate_features[:300, 1], torch.ones(300, 1)], 1).double().numpy()
    expected = np.linalg.lstsq(x, trace.divergence[:300, 1].double().numpy(), rcond=None)[0]
    assert gate.weights[1] == pytest.approx(expected.tolist(), abs=2e-3)
    estimates = estimate_trace(trace, (1.0,) * 3, gate)
    assert np.corrcoef(estimates[300:, 1], trace.divergence[300:, 1])[0, 1] > 0.95


def test_limits_trust_the_share_asked_for():
    trace = trace_with_gate_features()
    gate = fit_gate(trace, torch.arange(400), (1.0,) * 3)
    estimates = estimate_trace(trace, (1.0,) * 3, gate)
    for share in (0.5, 0.8):
        limits = limit_gate(gate, estimates, share).limits
        for k in range(2):
            assert (estimates[:, k] <= limits[k]).float().mean().item() == pytest.approx(share, abs=0.01)
    assert limit_gate(gate, estimates, 1.0) is gate


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(0.01, 1))
def test_distrust_only_a_threshold_of_0_overrides(limits, threshold):
    trace = trace_with_gate_features(50)
    gate = xl.Gate(fit_gate(trace, torch.arange(50), (1.0,) * 3).weights, tuple(limits))
    estimates = estimate_trace(trace, (1.0,) * 3, gate)
    exits = xl.route(trace, xl.Policy((threshold, threshold), gate=gate))
    for k in range(2):
        assert (estimates[exits == k, k] <= limits[k]).all()
    assert xl.route(trace, xl.Policy((0.0, 0.5), gate=gate)).eq(0).all()
    assert (
        score_early_exits(trace, xl.Policy((0.5, 0.5), gate=gate)) <= score_early_exits(trace, xl.Policy((0.5, 0.5)))
    ).all()


def test_bad_gates_and_traces():
    with pytest.raises(xl.PolicyError, match="a limit and 4 weights"):
        xl.Gate(((1.0, 2.0),), (0.5,))
    with pytest.raises(xl.PolicyError, match="finite weights"):
        xl.Gate(((math.nan, 0, 0, 0),), (0.5,))
    with pytest.raises(xl.PolicyError, match="rows of numbers"):
        xl.Gate("x", (0.5,))
    with pytest.raises(xl.PolicyError, match="gate: expected a Gate for 2 early exits"):
        xl.Policy((0.5, 0.5), gate=xl.Gate(((0, 0, 0, 0),), (0.5,)))
    gate = xl.Gate(((0, 0, 0, 0),) * 2, (0.5, math.inf))
    with pytest.raises(xl.InputError, match="needs gate_features and this trace has none"):
        xl.route(random_trace(20), xl.Policy((0.5, 0.5), gate=gate))
    policy = xl.Policy((0.5, 0.5), gate=gate)
    assert xl.Policy.from_dict(policy.to_dict()) == policy
    with pytest.raises(xl.InputError, match="gate_features: expected"):
        xl.Trace(torch.zeros(2, 2, 2), None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]), gate_features=torch.zeros(2, 2, 2))
