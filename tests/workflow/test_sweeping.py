"""sweep, measure_anytime and MSDNet's protocol: by hand, against brute force, and bands that hold what they say."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import exitlens as xl
from exitlens.workflow.sweeping import _find_bands
from tests.conftest import random_trace


def test_the_sweep_goes_from_cheap_to_good():
    points = xl.sweep(random_trace(2000))
    assert len(points) > 5
    assert points[0].cost.value == pytest.approx(0.2, abs=0.02)
    costs = [p.cost.value for p in points]
    assert costs[-1] > 0.9
    assert all(b - a > -0.03 for a, b in pairwise(costs))  # sorted on the other half
    assert points[-1].accuracy.value > points[0].accuracy.value + 0.1
    assert points[-1].divergence.value < points[0].divergence.value
    for p in points:
        for band in (p.cost, p.accuracy, p.agreement, p.divergence):
            assert band.low <= band.value <= band.high
    assert points[0].to_dict()["accuracy"]["value"] == points[0].accuracy.value


def test_swept_policies_perform_as_stated_on_the_other_half():
    trace = random_trace(600)
    rows = torch.randperm(600, generator=torch.Generator().manual_seed(0))[300:]
    other = xl.Trace(trace.logits[rows], trace.labels[rows], trace.divergence[rows], trace.cost)
    for point in xl.sweep(trace, most=6):
        report = xl.evaluate(other, point.policy)
        assert report.cost == pytest.approx(point.cost.value)
        assert report.accuracy == pytest.approx(point.accuracy.value)
        assert report.divergence == pytest.approx(point.divergence.value, abs=1e-6)
        assert 1 - report.disagreement == pytest.approx(point.agreement.value, abs=1e-6)


def test_without_labels():
    points = xl.sweep(random_trace(300, labelled=False), score="entropy")
    assert all(p.accuracy is None for p in points)
    assert points[-1].agreement.value > 0.9


@pytest.mark.slow
def test_bands_cover_all_means_at_once():
    rng, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        x = torch.rand(8, 300, generator=rng)
        covered += all(b.low <= 0.5 <= b.high for b in _find_bands(x, 0.9))
    assert 0.83 <= covered / 200 <= 0.97
    assert _find_bands(torch.ones(2, 50), 0.95)[0] == xl.types.ConfidenceInterval(1.0, 1.0, 1.0)


def test_bands_count_groups():
    rng, covered, alone = torch.Generator().manual_seed(0), 0, 0
    for _ in range(100):
        groups = torch.arange(100).repeat_interleave(torch.randint(1, 9, (100,), generator=rng))
        x = torch.rand(4, 100, generator=rng)[:, groups]  # all samples of a group alike
        covered += all(b.low <= 0.5 <= b.high for b in _find_bands(x, 0.9, groups))
        alone += all(b.low <= 0.5 <= b.high for b in _find_bands(x, 0.9))
    assert covered / 100 == pytest.approx(0.9, abs=0.08)
    assert alone / 100 < 0.6


def test_groups_stay_on_one_side():
    trace = replace(random_trace(200), groups=torch.arange(200) // 10)
    assert len(xl.sweep(trace)) > 1
    alone = replace(trace, groups=torch.arange(200))
    assert xl.sweep(alone, most=5) == xl.sweep(random_trace(200), most=5)
    with pytest.raises(xl.errors.InputError, match="expected 10 groups or more, got 4"):
        xl.sweep(replace(trace, groups=torch.arange(200) // 50))


def test_anytime_by_hand():
    logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    trace = xl.Trace(logits, torch.tensor([0, 1]), torch.zeros(2, 2), torch.tensor([0.25, 1.0]))
    assert xl.measure_anytime(trace) == [xl.types.CostAccuracy(0.25, 0.5), xl.types.CostAccuracy(1.0, 1.0)]


def test_budgeted_batch_follows_the_geometric_shares():
    trace = random_trace(3000)
    points = xl.measure_budgeted_batch(trace, trace, points=7)
    costs = [p.cost for p in points]
    assert costs == sorted(costs)
    assert points[3].cost == pytest.approx(trace.cost.mean().item(), abs=0.01)  # q = 1: a third each
    assert points[-1].accuracy > points[0].accuracy
    q = 10**-0.5
    shares = torch.tensor([1, q, q * q])
    expected = (shares / shares.sum() * trace.cost).sum().item()
    assert points[2].cost == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trace: xl.sweep(trace.select(torch.arange(8))), "10 samples or more"),
        (lambda trace: xl.sweep(trace, score="x"), "score"),
        (lambda trace: xl.sweep(trace, level=1), "level"),
        (lambda trace: xl.sweep(trace, most=0), "most: expected a whole number"),
        (lambda trace: xl.measure_anytime(replace(trace, labels=None)), "labels"),
        (lambda trace: xl.measure_budgeted_batch(trace, random_trace(20, k=4)), "traces of one network"),
        (lambda trace: xl.measure_budgeted_batch(trace, trace, points=True), "points: expected a whole number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(xl.errors.InputError, match=message):
        call(random_trace(20))
