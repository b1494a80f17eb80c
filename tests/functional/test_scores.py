import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import exitlens as xl
from exitlens.functional import scores


def test_scores_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    assert scores.score(logits).item() == pytest.approx(0.5)
    assert scores.score(logits, "margin").item() == pytest.approx(0.2)
    nats = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert scores.score(logits, "entropy").item() == pytest.approx(1 - nats / math.log(3), abs=1e-6)
    with pytest.raises(xl.errors.InputError, match="score"):
        scores.score(logits, "confidence")


@given(st.integers(0, 500), st.sampled_from(["max_probability", "entropy", "margin"]), st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_scores_lie_in_the_unit_interval(seed, kind, temperature):
    logits = 20 * torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
    values = scores.score(logits, kind, temperature)
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-6


@pytest.mark.parametrize("several", [False, True])
def test_temperature_equals_a_general_optimiser(several):
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(500, 4, generator=rng) < 0.3 if several else torch.randint(0, 4, (500,), generator=rng)
    truth = labels.double() if several else labels
    logits = 3 * (torch.randn(500, 4, generator=rng) + (2 * labels.float() - 1 if several else F.one_hot(labels, 4)))
    entropy = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    loss = lambda log_t: entropy(logits.double() / math.exp(log_t), truth).item()  # noqa: E731
    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert scores.fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-3)


def test_temperature_of_separable_data_is_clipped():
    assert scores.fit_temperature(torch.eye(3) * 5, torch.arange(3)) == pytest.approx(0.05, rel=1e-3)


def test_probabilities_are_a_softmax_in_float32():
    logits = torch.randn(4, 3).bfloat16()
    assert scores.probabilities(logits, 2.0).dtype == torch.float32
    torch.testing.assert_close(scores.probabilities(logits, 2.0), (logits.float() / 2).softmax(1))


def test_rating_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]).log().clamp_min(-100)
    rating = scores.rate_probabilities(logits, torch.tensor([0, 0, 0]), 1.0)
    assert rating.squared_error.tolist() == pytest.approx([0, 0.5, 2])
    assert rating.confidence.tolist() == pytest.approx([1, 0.5, 1])
    assert rating.correct.tolist() == [1, 1, 0]


def test_how_decided_several_labels_are():
    logits = torch.log(torch.tensor([[0.9 / 0.1, 0.3 / 0.7, 1.0], [4.0, 1 / 9, 99.0]]))
    assert scores.score(logits, "decided").tolist() == pytest.approx([0.5, 0.8])
    assert scores.probabilities(logits, kind="decided")[0].tolist() == pytest.approx([0.9, 0.3, 0.5])
    assert scores.score(2 * logits, "decided", 2.0).tolist() == pytest.approx([0.5, 0.8])


@given(st.integers(0, 500), st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_an_undecided_label_keeps_a_sample_undecided(seed, temperature):
    logits = 20 * torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
    values = scores.score(logits, "decided", temperature)
    assert values.min() >= 0.5
    assert values.max() <= 1
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(scores.score(logits[:, order], "decided", temperature), values)  # lanes round differently
    unsure = torch.cat([logits, torch.zeros(16, 1)], 1)
    assert (scores.score(unsure, "decided", temperature) == 0.5).all()


def test_every_label_is_rated():
    rating = scores.rate_probabilities(torch.tensor([[0.0, math.log(9.0)]]), torch.tensor([[True, False]]), 1.0)
    assert rating.confidence.tolist() == pytest.approx([0.5, 0.9])
    assert rating.correct.tolist() == [1, 0]
    assert rating.squared_error.tolist() == pytest.approx([0.25, 0.81])


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
    assert scores.expected_calibration_error(confidence, (answer == labels).float()) == pytest.approx(total, abs=1e-6)


def test_risk_coverage_by_hand_and_whatever_the_order_of_ties():
    curve = scores.risk_coverage(torch.tensor([0.9, 0.5, 0.7]), torch.tensor([1.0, 0.0, 1.0]))
    assert curve.tolist() == pytest.approx([0, 0, 1 / 3])
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5])
    first = scores.risk_coverage(confidence, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    last = scores.risk_coverage(confidence, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert first.tolist() == pytest.approx(last.tolist())
    assert first[-1] == pytest.approx(0.25)


def test_overthinking_by_hand():
    correct = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool()
    assert scores.overthinking(correct) == pytest.approx((0.2, 0.4))
    assert scores.overthinking(correct[:, :1]) == (0.0, 0.0)


def test_micro_f1_by_hand():
    answers, labels = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool(), torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    assert scores.micro_f1(answers, labels) == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))  # 2 right, 2 wrong, 1 missed
    assert scores.micro_f1(torch.zeros(3, 2).bool(), torch.zeros(3, 2).bool()) == 1


def test_rank_area_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = torch.Generator().manual_seed(0)
    values, positive = torch.randint(0, 9, (200,), generator=rng) / 9, torch.rand(200, generator=rng) < 0.3
    assert scores.rank_area(values, positive) == pytest.approx(metrics.roc_auc_score(positive, values))
    assert scores.rank_area(values, torch.zeros(200, dtype=torch.bool)) is None


def test_the_oracle_by_hand():
    correct = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    points = scores.find_oracle_curve(correct, torch.tensor([0.2, 0.6, 1.0]))
    assert points == (
        (pytest.approx(0.2), 0.25),
        (pytest.approx((0.2 * 3 + 0.6) / 4), 0.5),
        (pytest.approx((0.2 * 2 + 0.6 + 1) / 4), 0.75),
    )
