import json
import math

import pytest
import torch

import exitlens as xl
from exitlens.workflow.evaluation import expected_calibration_error
from tests.conftest import random_trace


def test_report_by_hand():
    logits = torch.tensor([[[3.0, 0.0], [3.0, 0.0]], [[0.1, 0.0], [0.0, 3.0]], [[3.0, 0.0], [0.0, 3.0]]])
    trace = xl.Trace(
        logits, torch.tensor([0, 1, 1]), torch.tensor([[0.2, 0.0], [0.4, 0.0], [0.6, 0.0]]), torch.tensor([0.4, 1.0])
    )
    report = xl.evaluate(trace, xl.Policy((0.9,)))
    assert report.exit_shares == pytest.approx((2 / 3, 1 / 3))
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.accuracy_drop == pytest.approx(1 / 3)
    assert report.disagreement == pytest.approx(1 / 3)
    assert report.divergence == pytest.approx((0.2 + 0.0 + 0.6) / 3)
    assert report.cost == pytest.approx((0.4 + 1.0 + 0.4) / 3)
    assert [row.accuracy for row in report.exits] == pytest.approx([1 / 3, 1.0])
    assert report.exits[0].accuracy_when_taken == pytest.approx(0.5)
    assert report.samples == 3


def test_the_never_exit_policy_is_the_final_exit():
    trace = random_trace()
    report = xl.evaluate(trace, xl.Policy.never(3))
    assert report.accuracy == report.exits[-1].accuracy
    assert report.accuracy_drop == report.divergence == 0
    assert report.cost == pytest.approx(1.0)


def test_curve_reaches_from_the_first_exit_to_the_full_network():
    trace = random_trace()
    report = xl.evaluate(trace, xl.Policy.never(3))
    assert report.curve[0] == pytest.approx((0.2, report.exits[0].accuracy))
    assert report.curve[-1] == pytest.approx((1.0, report.exits[-1].accuracy))
    assert max(y for _, y in report.curve) >= report.exits[-1].accuracy


def test_unlabelled_traces_have_no_accuracy(net, images):
    trace = xl.collect(net, images)
    report = xl.evaluate(trace, xl.Policy((0.9, 0.9)))
    assert report.accuracy is None
    assert report.exits[0].calibration_error is None
    cc = report.exits[0].consistency["cc"]
    assert cc["skill"] == pytest.approx((cc["value"] - cc["null"]) / (1 - cc["null"]))
    assert "skill" not in report.exits[0].consistency["kl"]
    json.dumps(report.to_dict())
    assert "final" not in str(report)
    assert "routed" in str(report)


def test_calibration_error_equals_a_loop():
    rng = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(400, 5, generator=rng)).softmax(1)
    labels = torch.randint(0, 5, (400,), generator=rng)
    confidence, answer = p.max(1)
    total = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15 if b < 14 else confidence <= 1)
        if inside.any():
            gap = (answer[inside] == labels[inside]).float().mean() - confidence[inside].mean()
            total += inside.float().mean().item() * abs(gap.item())
    assert expected_calibration_error(p, labels) == pytest.approx(total, abs=1e-6)


def test_policy_checks():
    with pytest.raises(xl.PolicyError):
        xl.evaluate(random_trace(), xl.Policy((0.5,)))
    assert math.isinf(xl.Policy.never(3).thresholds[0])
