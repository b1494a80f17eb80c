"""Explanation-gated exits: the router does what the trace says, in batches, streams and compiled; calibrate finds them."""

import json
import math
import re

import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import select_exits
from exitlens.functional.routing import estimate_trace, fit_gate, limit_gate, score_early_exits
from tests.conftest import make_net, spread_policy
from tests.functional.test_routing import trace_with_gate_features

IMAGES = torch.randn(120, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def gated_policy(net: xl.ExitNet, inputs, share: float = 0.6) -> tuple[xl.Policy, xl.Trace]:
    """Thresholds that some reach at every exit, and a gate that some fail."""
    trace, plain = xl.collect(net, inputs), spread_policy(net, inputs)
    gate = fit_gate(trace, torch.arange(len(trace)), plain.temperatures)
    gate = limit_gate(gate, estimate_trace(trace, plain.temperatures, gate), share)
    return xl.Policy(plain.thresholds, gate=gate), trace


@pytest.fixture(scope="module")
def made():
    net = make_net()
    return net, *gated_policy(net, IMAGES)


def check(net: xl.ExitNet, pred: xl.Prediction, policy: xl.Policy, trace: xl.Trace) -> None:
    exits = xl.route(trace, policy)
    assert pred.exits.tolist() == exits.tolist()
    estimates = torch.cat([estimate_trace(trace, policy.temperatures, policy.gate), torch.zeros(len(trace), 1)], 1)
    torch.testing.assert_close(pred.divergence_estimate, select_exits(estimates, exits), atol=1e-5, rtol=1e-4)
    final = exits == net.num_exits - 1
    assert pred.last_divergence.isnan().tolist() == (~final).tolist()
    torch.testing.assert_close(pred.last_divergence[final], trace.divergence[final, -2], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("micro_batch", [0, 7])
def test_the_router_gates_as_the_trace_says(made, micro_batch):
    net, policy, trace = made
    net.tuning = xl.Tuning(micro_batch=micro_batch)
    check(net, xl.predict(net, IMAGES, policy), policy, trace)
    assert len(xl.route(trace, policy).unique()) == 3
    assert (xl.route(trace, policy) != xl.route(trace, xl.Policy(policy.thresholds))).any()
    item = xl.predict(net, IMAGES[:1], policy, attention=True)
    assert len(item.attention) == 1
    assert item.divergence_estimate.shape == (1,)


def test_streams_and_their_orders(made):
    net, policy, trace = made
    net.tuning = xl.Tuning(micro_batch=16)
    for order in ("input", "ready"):
        parts = list(xl.predict_stream(net, IMAGES.split(9), policy, order=order))
        where = torch.cat([p.index for p in parts]).argsort()
        columns = [torch.cat([getattr(p, name) for p in parts])[where] for name in ("exits", "divergence_estimate")]
        exits = xl.route(trace, policy)
        assert columns[0].tolist() == exits.tolist()
        assert columns[1][exits == 2].tolist() == [0.0] * int((exits == 2).sum())


@pytest.mark.parametrize("thresholds", [(math.inf, 0.3), (0.5, math.inf), (math.inf, math.inf), (0.0, 0.5)])
def test_exits_that_never_or_always_fire(made, thresholds):
    net, policy, trace = made
    net.tuning = xl.Tuning()
    other = xl.Policy(thresholds, gate=policy.gate)
    pred = xl.predict(net, IMAGES, other)
    assert pred.exits.tolist() == xl.route(trace, other).tolist()
    if thresholds[1] == math.inf and thresholds[0] != 0:
        assert pred.last_divergence.isnan().all()  # the last early exit was not computed


def test_compiled_steps_are_gated_alike(made, monkeypatch):
    """As if PyTorch compiled them: tests/model/engine/test_engine.py compares the maps of compiled code."""
    net, policy, trace = made
    net.tuning = xl.Tuning()
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    net.compile(policy)
    check(net, xl.predict(net, IMAGES, policy), policy, trace)
    net.tuning = xl.Tuning()


def test_explanations_know_the_gate(made):
    net, policy, trace = made
    result = xl.explain_batch(net, IMAGES[:30], policy)
    assert [item.answered for item in result] == xl.route(trace, policy)[:30].tolist()
    estimates = estimate_trace(trace, policy.temperatures, policy.gate)
    decisive = score_early_exits(trace, policy)
    for i, item in enumerate(result):
        assert [v.estimate for v in item.exits[:-1]] == pytest.approx(estimates[i].tolist(), abs=1e-5)
        assert item.exits[-1].estimate is None
        assert [v.fired for v in item.exits[:-1]] == [bool(decisive[i, k] >= policy.thresholds[k]) for k in range(2)]
    stopped = next(item for item in result if any(v.confidence >= v.threshold and not v.fired for v in item.exits[:-1]))
    assert re.search("reached the threshold too, but its map was not trusted: .* diverg.* over the limit", stopped.reason)
    assert [v.limit for v in stopped.exits] == [*policy.gate.limits, None]
    json.dumps(stopped.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_calibrate_fits_a_gate_where_it_saves():
    trace = trace_with_gate_features(2000)
    limit = 0.5 * trace.divergence[:, 0].mean().item()
    plain = xl.calibrate(trace, max_divergence=limit)
    gated = xl.calibrate(trace, max_divergence=limit, gate=True)
    assert gated.gate is not None
    assert gated.calibration.cost < plain.calibration.cost
    assert select_exits(trace.divergence, xl.route(trace, gated)).mean().item() <= limit + 1e-6
    certified = xl.calibrate(trace, max_divergence=limit, gate=True, delta=0.1)
    assert certified.gate is not None
    assert certified.calibration.cost < 0.95
    assert xl.calibrate(trace, max_divergence=1.0, gate=True).gate is None  # nothing to gain: the simpler rule


def test_the_monitors_reference_is_what_predictions_report():
    """Also where a threshold of 0 lets samples leave whose map is not trusted: their score is reported as it is."""
    trace = trace_with_gate_features(600)
    policy = xl.calibrate(trace, max_divergence=0.6 * trace.divergence[:, 0].mean().item(), max_disagreement=1.0, gate=True)
    exits = xl.route(trace, policy)
    early = score_early_exits(trace, xl.Policy(policy.thresholds, temperatures=policy.temperatures))
    final = (trace.logits[:, 2] / policy.temperatures[2]).softmax(1).amax(1, keepdim=True)
    expected = select_exits(torch.cat([early, final], 1), exits).mean().item()
    assert xl.DriftMonitor(policy).state().expected_confidence == pytest.approx(expected, abs=1e-5)
