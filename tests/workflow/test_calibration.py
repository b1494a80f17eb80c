"""calibrate without delta, and with limits in milliseconds."""

import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import accuracy_drop, disagreement, select_exits
from tests.conftest import make_timing, random_trace, timed_trace


@pytest.mark.parametrize("score", ["max_probability", "entropy", "margin"])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05])
@pytest.mark.slow
def test_the_limit_holds_on_the_trace_and_saves(score, limit):
    trace = random_trace(1000)
    before = trace.logits.clone()
    policy = xl.calibrate(trace, max_accuracy_drop=limit, score=score)
    assert torch.equal(trace.logits, before)
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
    [({"max_cost": 0.1}, "first exit alone"), ({"max_cost": 0.21, "max_disagreement": 0.0}, "raise one of the limits")],
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


MS = torch.tensor(make_timing().ms)


def spend(trace, policy):
    return MS[xl.route(trace, policy)]


@pytest.mark.parametrize(("budget", "limits"), [("max_cost", (0.2, 0.4, 0.7, 1.0)), ("max_ms", (2, 4, 6, 11))])
@pytest.mark.slow
def test_the_mean_is_within_the_budget_and_more_of_it_is_more_accuracy(budget, limits):
    trace = timed_trace(1000)
    policies = [xl.calibrate(trace, **{budget: limit}) for limit in limits]
    reports = [xl.evaluate(trace, policy) for policy in policies]
    for limit, policy, report in zip(limits, policies, reports, strict=True):
        assert (report.cost if budget == "max_cost" else spend(trace, policy).mean()) <= limit + 1e-4
    drops = [report.accuracy_drop for report in reports]
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] <= 0
    record = policies[1].calibration
    assert record.limits == {budget: limits[1]}
    assert record.timing == trace.timing
    assert record.request.percentile is None


def test_a_mean_by_hand():
    """Two samples are sure and right at exit 0, two are not and wrong: half of each exit takes (2 + 10.5) / 2 ms."""
    sure, unsure, right = [4.0, 0.0], [0.0, 0.5], [4.0, 0.0]
    logits = torch.tensor([[sure, right]] * 2 + [[unsure, right]] * 2)
    timing = xl.types.ExitLatency((2.0, 10.5), (2.0, 10.5), (2.0, 10.5), 10.0, 1, 1)
    trace = xl.Trace(logits, torch.zeros(4).long(), torch.zeros(4, 2), timing.cost, timing=timing)
    assert xl.route(trace, xl.calibrate(trace, max_ms=6.25)).tolist() == [0, 0, 1, 1]
    assert xl.route(trace, xl.calibrate(trace, max_ms=2.5)).tolist() == [0, 0, 0, 0]
    assert xl.route(trace, xl.calibrate(trace, max_ms=5, percentile=50)).tolist() == [0, 0, 1, 1]
    assert xl.route(trace, xl.calibrate(trace, max_ms=5, percentile=51)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("percentile", [50, 90, 95, 100])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_percentile_of_samples_is_within_the_limit(percentile, labelled):
    trace = timed_trace(1000, labelled=labelled)
    policy = xl.calibrate(trace, max_ms=5, percentile=percentile)
    assert (spend(trace, policy) <= 5).float().mean() >= percentile / 100 - 1e-6
    harm = accuracy_drop(trace) if labelled else disagreement(trace)
    everything_at_exit_1 = harm[:, 1].mean()
    assert select_exits(harm, xl.route(trace, policy)).mean() <= everything_at_exit_1
    assert policy.calibration.request.percentile == percentile


@pytest.mark.slow
def test_beside_other_limits_the_cheapest_that_keeps_all():
    trace = timed_trace(1000)
    alone = xl.calibrate(trace, max_accuracy_drop=0.06)
    for options in ({"max_ms": 6.5}, {"max_ms": 5, "percentile": 80}, {"max_ms": 6.5, "max_cost": 0.65}):
        policy = xl.calibrate(trace, max_accuracy_drop=0.06, **options)
        assert xl.evaluate(trace, policy).accuracy_drop <= 0.06 + 1e-6
        times = spend(trace, policy)
        assert times.mean() <= 6.5 if "percentile" not in options else (times <= 5).float().mean() >= 0.8
        assert policy.calibration.cost >= alone.calibration.cost - 0.01
    with pytest.raises(xl.errors.CalibrationError, match=r"no policy found keeps .*0.0.* within max_ms 2.5. Fix: raise one"):
        xl.calibrate(trace, max_disagreement=0.0, max_ms=2.5)
    with pytest.raises(xl.errors.CalibrationError, match=r"within max_ms 2\.5 for 99 % of the samples"):
        xl.calibrate(trace, max_disagreement=0.0, max_ms=2.5, percentile=99)


def test_a_refined_policy_keeps_a_limit_that_a_coarse_frontier_misses():
    trace = timed_trace(200)
    cheapest = xl.calibrate(trace, max_accuracy_drop=0.03)
    just = spend(trace, cheapest).mean().item() + 1e-3
    assert spend(trace, xl.calibrate(trace, max_accuracy_drop=0.03, max_ms=just)).mean() <= just


@pytest.mark.parametrize(("options", "test"), [({}, "betting"), ({"percentile": 90}, "binomial")])
@pytest.mark.slow
def test_a_certificate_promises_the_time(options, test):
    trace = timed_trace(1500)
    policy = xl.calibrate(trace, max_ms=5, delta=0.1, **options)
    record = policy.calibration
    result = record.certification.tests[0]
    assert result.p_value <= 0.1
    assert result.test in (test, "hoeffding_bentkus")
    times, words = spend(trace, policy), policy.certificate()
    if options:
        assert (times <= 5).float().mean() > 0.9
        assert "answers at least 90 % of the samples at exits that take at most 5 ms (as measured: 2, 5, 10.5 ms" in words
    else:
        assert times.mean() < 5
        assert "answers at exits that take at most 5 ms on average" in words
    assert "batches of 64 on Slow 9000, 2 threads" in words
    empirical = xl.calibrate(trace, max_ms=5, **options)
    assert xl.evaluate(trace, policy).accuracy_drop >= xl.evaluate(trace, empirical).accuracy_drop - 0.01
    assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.slow
def test_a_certificate_promises_both():
    trace = timed_trace(1500)
    policy = xl.calibrate(trace, max_ms=5, percentile=60, max_accuracy_drop=0.15, delta=0.1)
    names = [test.name for test in policy.calibration.certification.tests]
    assert names == ["max_accuracy_drop", "share of samples slower than 5 ms"]
    assert "15 points less accurate than the full network and answers at least 60 %" in policy.certificate()
    easy = xl.calibrate(trace, max_ms=99, max_accuracy_drop=0.15, delta=0.1)  # no exit is slower: nothing to test
    assert [test.name for test in easy.calibration.certification.tests] == ["max_accuracy_drop"]
    assert "at most 99 ms on average" in easy.certificate()


def test_uncertifiable_time_limits_raise():
    trace = timed_trace(300)
    with pytest.raises(xl.errors.CalibrationError, match="no policy could be certified within 5 ms: "):
        xl.calibrate(trace, max_ms=5, percentile=90, max_disagreement=0.001, delta=0.1)
    with pytest.raises(xl.errors.InputError, match="delta: no exit takes longer than max_ms"):
        xl.calibrate(trace, max_ms=11, delta=0.1)


def test_groups_are_what_a_certificate_counts():
    trace = replace(timed_trace(600), groups=torch.arange(600) // 2)
    policy = xl.calibrate(trace, max_ms=5, percentile=80, delta=0.1)
    assert policy.calibration.certification.tests[0].groups == 180
    assert (spend(trace, policy) <= 5).float().mean() >= 0.8


def test_time_limits_that_cannot_be_met():
    with pytest.raises(xl.errors.CalibrationError, match=r"the first exit takes 2 ms \(batches of 64.*allow 2 ms or more"):
        xl.calibrate(timed_trace(), max_ms=1.5)
    with pytest.raises(xl.errors.InputError, match=r"max_ms: this trace has no measured times: collect it with cost='time'"):
        xl.calibrate(random_trace(), max_ms=5)
    timing = xl.types.ExitLatency((2.0,), (2.0,), (2.0,), 2.0, 1, 1)
    trace = replace(random_trace(k=1), timing=timing)
    assert xl.calibrate(trace, max_ms=3).thresholds == ()
    with pytest.raises(xl.errors.CalibrationError, match="even the first exit"):
        xl.calibrate(trace, max_ms=1)
