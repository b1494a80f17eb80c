"""Numbers and vectors by hand: units, distances, losses, and what a trace keeps."""

import math

import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.functional import answers
from exitlens.functional.risk import list_risks
from exitlens.functional.scores import score
from exitlens.types import AnswerSummary


def test_units_there_and_back():
    targets = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    units = answers.measure_units(targets)
    assert units == ((2.0, 1.0), (5.0, 1.0))  # what does not vary has a spread of 1
    assert answers.standardise(targets, units).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert torch.equal(answers.restore_units(answers.standardise(targets, units), units), targets)
    assert answers.standardise(torch.tensor([4.0]), ()).tolist() == [[4.0]]
    assert answers.measure_units(torch.tensor([1e6, 1e6 + 2]))[0] == (1e6 + 1, 1.0)
    steady = torch.full((200,), 1234.567, dtype=torch.float64)  # its mean is rounded
    assert answers.measure_units(steady) == ((pytest.approx(1234.567), 1.0),)
    near = 1.7e9 + torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    restored = answers.restore_units(answers.standardise(near, ((1.7e9, 1.0),)), ((1.7e9, 1.0),))
    assert torch.equal(restored, near)
    assert answers.restore_units(torch.zeros(1, 1), ((2000.0, 3.0),)).dtype is torch.float32


def test_distances_by_hand():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert answers.measure_distance(a, b, "regression").tolist() == [2.5]
    assert answers.measure_distance(a, b, "embedding").tolist() == [1.0]
    assert answers.measure_distance(a, -a, "embedding").tolist() == [2.0]


def test_the_change_replaces_what_is_expected():
    p, before = torch.tensor([[3.0, 9.0]]), torch.tensor([[2.5, 9.0]])
    assert answers.compare_with(p, before, "regression").tolist() == [[3.0, 0.5]]
    first = answers.compare_with(p, None, "regression")
    assert first[0, 0] == 3.0
    assert score(first, "stability").item() == 0.0
    assert score(p, "closeness").item() == pytest.approx(math.exp(-9))


def test_nearest_probes_in_common():
    probes = F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors, others = probes[:5] + 0.3 * probes[5:10], probes[:5]
    shares = answers.share_nearest(vectors, others, probes)
    for i in range(5):
        near = [{*(probes @ each).argsort(descending=True)[:10].tolist()} for each in (vectors[i], others[i])]
        assert shares[i].item() == pytest.approx(len(near[0] & near[1]) / 10)
    assert answers.share_nearest(others, others, probes).tolist() == [1.0] * 5


def test_losses_by_hand():
    logits, target = torch.tensor([[0.5, 7.0], [3.0, 7.0]]), torch.tensor([[0.0], [0.0]])
    assert answers.answer_loss(logits, target, "regression").item() == pytest.approx((0.5 * 0.25 + 2.5) / 2)
    assert answers.rate_answers(logits, target, "regression").item() == pytest.approx(0.75 - 8)
    vectors, final = torch.tensor([[1.0, 0.0, 7.0], [0.0, 1.0, 7.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert answers.answer_loss(vectors, final, "embedding").item() == pytest.approx(0.5 + 0.5)  # two of four similarities
    assert answers.rate_answers(vectors, final, "embedding").item() == pytest.approx(1.0)


def test_forecasts_learn_the_error_and_change_no_answer():
    early = torch.tensor([[2.0, 0.1], [0.0, 1.0]], requires_grad=True)
    final = torch.tensor([[1.0, 1.0], [2.0, 1.0]], requires_grad=True)
    loss = answers.forecast_loss([early, final], torch.ones(2, 1), "regression")  # the errors are 1, 1 and 0 (or LEAST), 1
    assert loss.item() == pytest.approx((math.log(0.1) ** 2 / 2 + math.log(answers.LEAST) ** 2 / 2) / 2)
    loss.backward()
    assert early.grad[:, 0].tolist() == final.grad[:, 0].tolist() == [0.0, 0.0]
    assert early.grad[0, 1] < 0 == early.grad[1, 1]
    kept = torch.tensor([[1.0, 0.0, 0.0]])  # the final exit of an embedding expects nothing
    assert answers.forecast_loss([torch.tensor([[0.0, 1.0, 1.0]]), kept], kept[:, :2], "embedding").item() == 0.0


def make_summary() -> AnswerSummary:
    outputs = [torch.tensor([[0.0, 0.2], [2.0, 0.4]]), torch.tensor([[1.0, 0.0], [0.5, 0.0]])]
    return answers.summarise(outputs, "regression", ((10.0, 2.0),), torch.tensor([[12.0], [10.0]]))


def test_what_a_trace_keeps():
    kept = make_summary()
    assert kept.values.tolist() == [[[10.0], [12.0]], [[14.0], [11.0]]]
    assert kept.distance.tolist() == [[1.0, 0.0], [1.5, 0.0]]
    assert kept.error.tolist() == [[1.0, 0.0], [2.0, 0.5]]
    assert kept.scores[:, 0, 0].tolist() == pytest.approx([math.exp(-0.2), math.exp(-0.4)])
    assert kept.scores[..., 1].tolist() == [[0.0, 1.0], [0.0, 1.0]]  # exit 0 has nothing to compare with
    trace = xl.Trace(kept, torch.tensor([12.0, 10.0]), torch.zeros(2, 2), torch.tensor([0.5, 1.0]), task="regression")
    risks = {risk.name: risk for risk in list_risks(trace, {"max_error_increase": 0.1, "max_deviation": 0.2}, None)}
    assert risks["max_error_increase"].values.tolist() == [[1.0, 0.0], [1.0, 0.0]]  # 1.5 is clipped
    assert risks["max_deviation"].values.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(xl.errors.InputError, match="max_rank_change: this trace has no probes"):
        list_risks(trace, {"max_rank_change": 0.1}, None)


def count_broken(task: str, limit: dict[str, float], draws: int, delta: float = 0.2) -> tuple[int, int]:
    """Return how many certificates on draws of 150 from 20,000 samples were given, and how many of these were wrong."""
    rng = torch.Generator().manual_seed(0)
    count = 20_000
    hard = torch.rand(count, generator=rng).square()
    gap = (torch.randn(count, generator=rng).abs() * hard).clamp_max(2)  # of the early answer from the final one
    target = torch.randn(count, generator=rng)
    sure, zero = (-(0.1 + hard + 0.1 * torch.rand(count, generator=rng))).exp(), torch.zeros(count)
    kept = AnswerSummary(
        values=torch.stack([gap, zero], 1)[..., None] + torch.arange(count)[:, None, None] * 1e-6,
        scores=torch.stack([torch.stack([sure, zero + 1], 1)] * 2, -1),
        distance=torch.stack([gap, zero], 1),
        error=torch.stack([(gap - target).abs(), target.abs()], 1) if task == "regression" else None,
        overlap=torch.stack([(10 * (1 - gap.clamp_max(1))).round() / 10, zero + 1], 1) if task == "embedding" else None,
    )
    whole = xl.Trace(kept, None, torch.zeros(count, 2), torch.tensor([0.4, 1.0]), task=task)
    (risk,) = list_risks(whole, limit, torch.arange(count))
    broken = granted = 0
    for seed in range(draws):
        rows = torch.randint(0, count, (150,), generator=torch.Generator().manual_seed(seed))
        policy = xl.calibrate(whole.select(rows), **limit, delta=delta, seed=seed)
        granted += policy.thresholds[0] < math.inf
        broken += risk.mean(xl.route(whole, policy)) > risk.limit
    return granted, broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "limit"),
    [
        ("regression", {"max_error_increase": 0.05}),
        ("regression", {"max_deviation": 0.15}),
        ("embedding", {"max_distance": 0.08}),
        ("embedding", {"max_rank_change": 0.15}),
    ],
)
def test_certificates_are_broken_no_more_often_than_delta(task, limit):
    draws, delta = 40, 0.2  # of 1,000: docs/guides/vectors.md
    granted, broken = count_broken(task, limit, draws, delta)
    assert granted > draws / 4
    assert broken <= delta * draws + 2.5 * (draws * delta * (1 - delta)) ** 0.5
