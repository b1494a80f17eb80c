import pytest
import torch

from exitlens.functional.quality import (
    expected_calibration_error,
    micro_f1,
    overthinking,
    risk_coverage,
)


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
    assert expected_calibration_error(confidence, (answer == labels).float()) == pytest.approx(total, abs=1e-6)


def test_risk_coverage_by_hand():
    curve = risk_coverage(torch.tensor([0.9, 0.5, 0.7]), torch.tensor([1.0, 0.0, 1.0]))
    assert curve.tolist() == pytest.approx([0, 0, 1 / 3])


def test_ties_of_confidence_do_not_depend_on_the_order_of_samples():
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5])
    first = risk_coverage(confidence, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    last = risk_coverage(confidence, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert first.tolist() == pytest.approx(last.tolist())
    assert first[-1] == pytest.approx(0.25)


def test_overthinking_by_hand():
    correct = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool()
    assert overthinking(correct) == pytest.approx((0.2, 0.4))
    assert overthinking(correct[:, :1]) == (0.0, 0.0)


def test_micro_f1_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = torch.Generator().manual_seed(0)
    answers, labels = torch.rand(50, 4, generator=rng) < 0.4, torch.rand(50, 4, generator=rng) < 0.3
    expected = metrics.f1_score(labels.numpy(), answers.numpy(), average="micro")
    assert micro_f1(answers, labels) == pytest.approx(expected)
    assert micro_f1(torch.zeros(3, 2).bool(), torch.zeros(3, 2).bool()) == 1
