import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import Risk, accuracy_drop, select_exits
from exitlens.functional.thresholds.path import find_held_out, split_folds
from tests.conftest import random_trace, timed_trace


def lose(trace: xl.Trace, policy: xl.Policy) -> float:
    return select_exits(accuracy_drop(trace), xl.route(trace, policy)).mean().item()


@pytest.mark.slow
def test_new_samples_lose_what_was_asked_for():
    """Without folds they lose more than the limit; with them about as much (means over ten calibrations)."""
    new, limit = random_trace(20_000, seed=99), 0.01
    traces = [random_trace(400, seed=seed) for seed in range(10)]
    lost, held = (
        [lose(new, xl.calibrate(trace, max_accuracy_drop=limit, folds=folds)) for trace in traces] for folds in (None, 5)
    )
    assert sum(lost) / len(lost) > 1.5 * limit
    assert sum(held) / len(held) <= limit


def test_what_is_recorded_was_measured_on_held_out_samples():
    trace = random_trace(400)
    record = xl.calibrate(trace, max_accuracy_drop=0.02, max_divergence=0.2, folds=5).calibration
    assert record.held_out["max_accuracy_drop"] <= 0.02
    assert record.held_out["max_divergence"] <= 0.2
    assert xl.calibrate(trace, max_accuracy_drop=0.02).calibration.held_out is None


def test_by_hand():
    """One early exit; the surer half of each fold is right there, of the less sure half every second sample is not.

    Whichever fold proposes, the surer half may leave: a quarter of the held-out samples would lose beyond that.
    """
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6] * 16)[:, None]
    values = torch.zeros(64, 2)
    values[2::4, 0] = values[3::8, 0] = 1.0
    risk, cost, folds = Risk("max_disagreement", values, 0.1, "binary"), torch.tensor([0.5, 1.0]), torch.arange(64) // 32
    (threshold,), held = find_held_out(scores, [risk], cost, [], folds)
    assert 0.7 < threshold <= 0.8
    assert held == {"max_disagreement": 0.0}
    (threshold,), held = find_held_out(scores, [replace(risk, limit=0.4)], cost, [], folds)
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


def test_every_class_within_a_cost():
    trace = random_trace(300)
    record = xl.calibrate(trace, max_class_accuracy_drop=0.1, max_cost=0.9, folds=4).calibration
    assert [name for name in record.held_out if name.startswith("max_class_accuracy_drop")] == list(record.held_out)
    assert len(record.held_out) == 4
    assert max(record.held_out.values()) <= 0.1
    assert record.cost <= 0.9


def test_a_class_that_one_fold_holds_alone():
    """It is no limit for the thresholds that the other folds choose."""
    labels = torch.zeros(40, dtype=torch.int64)
    labels[0] = 1
    trace = replace(random_trace(40, c=2), labels=labels)
    record = xl.calibrate(trace, max_class_accuracy_drop=0.5, folds=5).calibration
    assert len(record.held_out) == 2


def test_more_folds_than_samples():
    with pytest.raises(xl.errors.InputError, match="folds: got 301 for 300 samples"):
        xl.calibrate(random_trace(300), max_accuracy_drop=0.1, folds=301)


def test_limits_that_no_policy_keeps_within_the_cost():
    message = r"keeps {'max_disagreement': 0.0} on held-out samples within max_cost 0.21"
    with pytest.raises(xl.errors.CalibrationError, match=message):
        xl.calibrate(random_trace(300), max_disagreement=0.0, max_cost=0.21, folds=3)


@pytest.mark.parametrize("limit", [0.13, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (0.15, 0.2, 0.25, 0.3))])
def test_a_looser_limit_is_not_refused_for_its_time(limit):
    """The cheapest step may take too long for one sample in ten where one before it does not."""
    record = xl.calibrate(timed_trace(200, seed=11), max_accuracy_drop=limit, max_ms=5.0, percentile=90, folds=5).calibration
    assert record.held_out["max_accuracy_drop"] <= limit


def test_policies_that_a_budget_asks_for_are_proposed():
    """None may go to the final exit, which takes too long."""
    policy = xl.calibrate(timed_trace(400), max_accuracy_drop=0.2, max_ms=5.0, percentile=100, folds=5)
    assert policy.thresholds[1] == 0


def test_the_samples_keep_the_limit_themselves_too():
    trace = random_trace(100, seed=1)
    assert lose(trace, xl.calibrate(trace, max_accuracy_drop=0.2, folds=5)) <= 0.2 + 1e-6
