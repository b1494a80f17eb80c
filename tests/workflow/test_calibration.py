import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import accuracy_drop, disagreement, select_exits
from tests.conftest import random_trace


@pytest.mark.parametrize("score", ["max_probability", "entropy", "margin"])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05])
def test_the_limit_holds_on_the_trace_and_saves(score, limit):
    trace = random_trace(1000)
    policy = xl.calibrate(trace, max_accuracy_drop=limit, score=score)
    exits = xl.route(trace, policy)
    assert select_exits(accuracy_drop(trace), exits).mean() <= limit + 1e-6
    cost = trace.cost[exits].mean().item()
    assert cost < 1
    record = policy.calibration
    assert record.cost == pytest.approx(cost, abs=1e-6)
    assert (record.samples, record.data, record.certification) == (1000, trace.fingerprint(), None)


def test_a_looser_limit_never_costs_more():
    trace = random_trace(1000)
    costs = [xl.calibrate(trace, max_accuracy_drop=limit).calibration.cost for limit in (0.0, 0.01, 0.03, 0.1, 0.5)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(0.2, abs=1e-6)


def test_several_risks_at_once_without_labels():
    trace = random_trace(1000, labelled=False)
    policy = xl.calibrate(trace, max_disagreement=0.1, max_divergence=0.05)
    exits = xl.route(trace, policy)
    assert select_exits(disagreement(trace), exits).mean() <= 0.1 + 1e-6
    assert select_exits(trace.divergence, exits).mean() <= 0.05 + 1e-6
    assert policy.temperatures == (1.0, 1.0, 1.0)
    alone = xl.calibrate(trace, max_disagreement=0.1)
    assert alone.calibration.cost <= policy.calibration.cost


def test_most_accurate_within_a_cost():
    trace = random_trace(1000)
    policies = [xl.calibrate(trace, max_cost=c) for c in (0.2, 0.4, 0.7, 1.0)]
    reports = [xl.evaluate(trace, p) for p in policies]
    for limit, report in zip((0.2, 0.4, 0.7, 1.0), reports, strict=True):
        assert report.cost <= limit + 1e-6
    accuracy = [r.accuracy for r in reports]
    assert accuracy == sorted(accuracy)


def test_thresholds_by_hand():
    """Exit 0 is right for the confident half, wrong for the other: the cheapest lossless threshold lies between."""
    confident, unsure = [4.0, 0.0], [0.0, 0.5]
    logits = torch.tensor([[confident, confident]] * 5 + [[unsure, [3.0, 0.0]]] * 5)
    trace = xl.Trace(logits, torch.zeros(10).long(), torch.zeros(10, 2), torch.tensor([0.5, 1.0]))
    policy = xl.calibrate(trace, max_accuracy_drop=0.0, temperature_scaling=False)
    low, high = torch.tensor(unsure).softmax(0).max().item(), torch.tensor(confident).softmax(0).max().item()
    assert policy.thresholds[0] == pytest.approx((low + high) / 2)
    assert xl.route(trace, policy).tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_cost": 0.1}, "first exit alone"),
        ({"max_cost": 0.21, "max_disagreement": 0.0}, "raise one of the limits"),
    ],
)
def test_limits_that_no_policy_keeps(limits, message):
    with pytest.raises(xl.errors.CalibrationError, match=message):
        xl.calibrate(random_trace(), **limits)


def test_other_types():
    for call in (lambda: xl.calibrate(None, max_cost=0.5), lambda: xl.evaluate(None, xl.Policy((0.5,)))):
        with pytest.raises(xl.errors.InputError, match="trace: expected Trace"):
            call()
    for call in (xl.evaluate, xl.route):
        with pytest.raises(xl.errors.InputError, match="policy: expected Policy"):
            call(random_trace(), None)
    with pytest.raises(xl.errors.InputError, match="labels"):
        xl.calibrate(random_trace(labelled=False), max_accuracy_drop=0.1)


def test_the_trace_is_not_changed():
    trace = random_trace()
    before = trace.logits.clone()
    xl.calibrate(trace, max_accuracy_drop=0.01, max_divergence=0.1)
    assert torch.equal(trace.logits, before)
