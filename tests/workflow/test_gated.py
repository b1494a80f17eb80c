"""Explanation-gated exits: the router does what the trace says, in batches, streams and compiled; calibrate finds them."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import select_exits
from exitlens.functional.routing import match_confidences, score_early_exits
from tests.conftest import make_net, spread_policy
from tests.functional.test_routing import trace_with_gate_features

IMAGES = torch.randn(120, 3, 16, 16, generator=torch.Generator().manual_seed(5))
WEIGHTS = (0.4, 0.1, 0.04, 1.0, -1.5), (0.2, 0.05, 0.0, -1.0, 0.5)


def gated_policy(net: xl.ExitNet, inputs) -> tuple[xl.Policy, xl.Trace]:
    """A gate whose estimates some samples reach at every exit, and which refuses some that are sure."""
    trace, plain = xl.collect(net, inputs), spread_policy(net, inputs)
    gated = xl.Policy((0.5, 0.5), gate=xl.types.Gate(WEIGHTS))
    thresholds = tuple(score_early_exits(trace, gated).quantile(0.6, dim=0).tolist())
    gated = replace(gated, thresholds=thresholds)
    scores, exits = score_early_exits(trace, plain), xl.route(trace, gated)
    gate = match_confidences(gated.gate, scores, exits)  # at scores of samples, which machines round differently
    return replace(gated, gate=replace(gate, confidences=tuple(level - 1e-5 for level in gate.confidences))), trace


@pytest.fixture(scope="module")
def made():
    net = make_net()
    return net, *gated_policy(net, IMAGES)


def find_refusing(trace: xl.Trace, policy: xl.Policy) -> torch.Tensor:
    """Return the first exit that refused a sample on its way, -1 where none did."""
    estimates, plain = score_early_exits(trace, policy), score_early_exits(trace, replace(policy, gate=None))
    exits, first = xl.route(trace, policy), torch.full((len(trace),), -1)
    for k in (1, 0):
        refuses = (plain[:, k] >= policy.gate.confidences[k]) & (estimates[:, k] < policy.thresholds[k]) & (exits > k)
        first[refuses] = k
    return first


def check(net: xl.ExitNet, pred: xl.Prediction, policy: xl.Policy, trace: xl.Trace) -> None:
    exits = xl.route(trace, policy)
    assert pred.exits.tolist() == exits.tolist()
    estimates = torch.cat([score_early_exits(trace, policy), torch.ones(len(trace), 1)], 1)
    torch.testing.assert_close(pred.trust, select_exits(estimates, exits), atol=1e-5, rtol=1e-4)
    assert pred.refused.tolist() == find_refusing(trace, policy).tolist()


@pytest.mark.parametrize("micro_batch", [0, 7])
def test_the_router_gates_as_the_trace_says(made, micro_batch):
    net, policy, trace = made
    net.tuning = xl.Tuning(micro_batch=micro_batch)
    check(net, xl.predict(net, IMAGES, policy), policy, trace)
    assert len(xl.route(trace, policy).unique()) == 3
    assert len(find_refusing(trace, policy).unique()) == 3
    item = xl.predict(net, IMAGES[:1], policy, attention=True)
    assert len(item.attention) == 1
    assert item.trust.shape == item.refused.shape == (1,)


def test_streams_and_their_orders(made):
    net, policy, trace = made
    net.tuning = xl.Tuning(micro_batch=16)
    for order in ("input", "ready"):
        parts = list(xl.predict_stream(net, IMAGES.split(9), policy, order=order))
        where = torch.cat([p.index for p in parts]).argsort()
        columns = [torch.cat([getattr(p, name) for p in parts])[where] for name in ("exits", "trust", "refused")]
        exits = xl.route(trace, policy)
        assert columns[0].tolist() == exits.tolist()
        assert columns[1][exits == 2].tolist() == [1.0] * int((exits == 2).sum())
        assert columns[2].tolist() == find_refusing(trace, policy).tolist()


@pytest.mark.parametrize("thresholds", [(math.inf, 0.3), (0.5, math.inf), (math.inf, math.inf), (0.0, 0.5)])
def test_exits_that_never_or_always_fire(made, thresholds):
    net, policy, trace = made
    net.tuning = xl.Tuning()
    other = xl.Policy(thresholds, gate=policy.gate)
    pred = xl.predict(net, IMAGES, other)
    assert pred.exits.tolist() == xl.route(trace, other).tolist()
    assert pred.trust[pred.exits == 2].eq(1).all()


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
    estimates = score_early_exits(trace, policy)
    for i, item in enumerate(result):
        assert [v.estimate for v in item.exits[:-1]] == pytest.approx(estimates[i].tolist(), abs=1e-5)
        assert item.exits[-1].estimate is None
        assert [v.fired for v in item.exits[:-1]] == [bool(estimates[i, k] >= policy.thresholds[k]) for k in range(2)]
    first = find_refusing(trace, policy)[:30]
    stopped = result[int((first >= 0).nonzero()[0])]
    assert re.search(
        r"was sure enough, but the gate refused its answer \(.*\): the trust of the gate in it, .* below the", stopped.reason
    )
    left = next(item for item in result if item.answered == 0)
    assert "the trust of the gate in it" in left.reason
    json.dumps(stopped.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_calibrate_fits_a_gate_that_saves():
    trace = trace_with_gate_features(2000)
    for limit, options in ((0.05, {}), (0.1, {"delta": 0.1})):
        plain, gated = (xl.calibrate(trace, max_disagreement=limit, gate=gate, **options) for gate in (False, True))
        assert plain.gate is None
        assert gated.calibration.cost < 0.9 * plain.calibration.cost
        differs = (trace.answers != trace.answers[:, -1:]).float()
        assert select_exits(differs, xl.route(trace, gated)).mean().item() <= limit + 1e-6


def test_a_gate_learns_divergence_where_it_is_limited():
    trace = trace_with_gate_features(2000)  # the entropy says what the divergence is
    gated = xl.calibrate(trace, max_divergence=0.1, gate=True)
    near = trace.divergence[:, 0] < 0.2
    estimates = score_early_exits(trace, gated)[:, 0]
    agrees = trace.answers[:, 0] == trace.answers[:, 2]
    assert estimates[near & agrees].mean() > estimates[~near & agrees].mean() + 0.1


def test_the_monitors_reference_is_what_predictions_report():
    trace = trace_with_gate_features(600)
    policy = xl.calibrate(trace, max_disagreement=0.2, gate=True)
    exits = xl.route(trace, policy)
    early = score_early_exits(trace, xl.Policy(policy.thresholds, temperatures=policy.temperatures))
    final = (trace.logits[:, 2] / policy.temperatures[2]).softmax(1).amax(1, keepdim=True)
    expected = select_exits(torch.cat([early, final], 1), exits).mean().item()
    assert xl.DriftMonitor(policy).state().expected_confidence == pytest.approx(expected, abs=1e-5)
    levels = policy.gate.confidences
    assert select_exits(early, exits.clamp_max(1))[exits == 0].numel() == int((early[:, 0] >= levels[0]).sum())
