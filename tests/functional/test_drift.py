"""The drift watch: silent while nothing changes, loud soon after a change, and the same in any portions."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.drift import BINS, find_cell, summarize_reference
from tests.conftest import random_trace

REQUEST = xl.CalibrationRequest(max_cost=1.0)
NUM_EXITS = 3


def draw(count: int, seed: int, hard: float = 0.0) -> xl.Prediction:
    """Exits and scores; ``hard`` shifts them to later and less sure."""
    rng = torch.Generator().manual_seed(seed)
    ease = torch.rand(count, generator=rng) - hard
    exits = torch.where(ease > 0.5, 0, torch.where(ease > 0.2, 1, 2))
    scores = (0.6 + 0.4 * ease).clamp(0, 1)
    p = torch.stack([scores, 1 - scores], 1)
    return xl.Prediction(p.argmax(1), exits, scores, p)


def take(pred: xl.Prediction, rows: slice | torch.Tensor) -> xl.Prediction:
    return xl.Prediction(pred.labels[rows], pred.exits[rows], pred.confidence[rows], pred.probabilities[rows])


def policy_on(pred: xl.Prediction) -> xl.Policy:
    reference = summarize_reference(pred.exits, pred.confidence, NUM_EXITS)
    return xl.Policy((0.8, 0.7), calibration=xl.types.Calibration(REQUEST, len(pred), reference=reference))


def test_cells_by_hand():
    edges = [0.2, 0.5, 0.9]
    assert [find_cell(edges, s) for s in (0.95, 0.9, 0.6, 0.5, 0.2, 0.1, math.nan)] == [0, 1, 1, 2, 3, 3, 3]
    found = summarize_reference(torch.tensor([0] * 80 + [2] * 3), torch.linspace(0, 1, 83), 3)
    assert len(found.counts[0]) == BINS
    assert sum(found.counts[0]) == 80
    assert max(found.counts[0]) - min(found.counts[0]) <= 1
    assert found.counts[1] == (0,)
    assert found.counts[2] == (3,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_false_alarms_are_rare():
    alarms = 0
    for seed in range(40):
        watch = xl.DriftMonitor(policy_on(draw(300, 1000 + seed)), false_alarm=0.1, seed=seed)
        alarms += watch.update(draw(1200, seed)).alarm
    assert alarms / 40 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 40)


@pytest.mark.parametrize("before", [0, 600])
@pytest.mark.parametrize("hard", [0.25, -0.25])
def test_a_change_is_seen_soon_in_either_direction(before, hard):
    for seed in range(5):
        watch = xl.DriftMonitor(policy_on(draw(1000, 50 + seed)), seed=seed)
        if before:
            assert not watch.update(draw(before, seed)).alarm
        with pytest.warns(xl.errors.DriftWarning, match=r"drift: .*calibrate again"):
            state = watch.update(draw(400, 99 + seed, hard))
        assert state.alarm
        assert before < state.since <= before + 400
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert watch.update(draw(50, 7)).since == state.since  # said once


def test_portions_do_not_matter_and_memory_is_constant():
    pred = draw(500, 3)
    one, other = (xl.DriftMonitor(policy_on(draw(200, 1))) for _ in range(2))
    whole = one.update(pred)
    parts = [take(pred, slice(i, i + 7)) for i in range(0, 500, 7)]
    assert list(other.watch(parts)) == parts
    last = other.state()
    assert last.evidence == pytest.approx(whole.evidence)
    assert last.exit_shares == whole.exit_shares
    assert last.confidence == pytest.approx(whole.confidence)
    assert last.samples == 500
    sizes = [len(v) for v in vars(one).values() if isinstance(v, list)]
    one.update(draw(500, 4))
    assert [len(v) for v in vars(one).values() if isinstance(v, list)] == sizes


def test_refusals_are_counted_by_class():
    pred = draw(4, 0)
    labels, refused = torch.tensor([0, 2, 2, 0]), torch.tensor([-1, 0, 1, -1])
    pred = xl.Prediction(labels, pred.exits, pred.confidence, pred.probabilities, refused=refused)
    monitor = xl.DriftMonitor(policy_on(draw(100, 1)))
    assert monitor.update(draw(3, 1)).refused is None
    state = monitor.update(pred)
    assert state.refused == pytest.approx(0.5)
    assert state.refused_by_class == {0: 0.0, 2: 1.0}
    assert "no drift seen in 7 samples" in state.summary
    assert "the gate refused 50.0 % of the samples" in state.summary


def with_groups(policy: xl.Policy) -> xl.Policy:
    record = policy.calibration
    return replace(policy, calibration=replace(record, groups=record.samples))


def test_of_a_group_the_first_sample_counts_whatever_the_portions():
    pred, first = draw(90, 3), torch.arange(0, 90, 3)
    one, other, alone = (xl.DriftMonitor(with_groups(policy_on(draw(200, 1)))) for _ in range(3))
    ids = torch.arange(90) // 3
    state = one.update(pred, ids)
    assert (state.samples, state.groups) == (90, 30)
    assert "90 samples in 30 groups" in state.summary
    names = [f"video {i}" for i in ids.tolist()]
    parts = [slice(at, at + 7) for at in range(0, 90, 7)]
    portions = [take(pred, part) for part in parts]
    assert list(other.watch(portions, [names[part] for part in parts])) == portions
    assert other.state() == state
    expected = alone.update(take(pred, first), range(30))
    assert replace(expected, samples=90) == state


def test_calibrate_gives_the_reference_of_samples_or_of_groups():
    base = random_trace(400)
    for trace, count in ((base, 400), (replace(base, groups=torch.arange(400) % 100), 100)):
        policy = xl.calibrate(trace, max_accuracy_drop=0.05)
        counts = [sum(cells) for cells in policy.calibration.reference.counts]
        assert counts == xl.route(trace, policy)[:count].bincount(minlength=3).tolist()
        state = xl.DriftMonitor(xl.Policy.from_dict(policy.to_dict())).state()
        assert state.expected_shares == pytest.approx([c / count for c in counts])


def test_groups_are_given_always_or_never():
    policy = with_groups(policy_on(draw(50, 0)))
    with pytest.raises(xl.errors.InputError, match="groups: the calibration, or an earlier update, counted groups"):
        xl.DriftMonitor(policy).update(draw(5, 0))
    with pytest.raises(xl.errors.InputError, match="groups: expected one for each of the 5 samples, got 4"):
        xl.DriftMonitor(policy).update(draw(5, 0), range(4))
    watch = xl.DriftMonitor(policy_on(draw(50, 0)))
    watch.update(draw(5, 0))
    with pytest.raises(xl.errors.InputError, match="groups: earlier updates had none"):
        watch.update(draw(5, 0), range(5))
    with pytest.raises(xl.errors.InputError, match="groups: the calibration, or an earlier update"):
        list(xl.DriftMonitor(policy).watch([draw(5, 0), draw(5, 1)], [range(5)]))


def test_bad_input():
    policy = policy_on(draw(50, 0))
    for bad in (0, 1, True, "x"):
        with pytest.raises(xl.errors.InputError, match="false_alarm"):
            xl.DriftMonitor(policy, bad)
    zero, one = torch.zeros(1).long(), torch.ones(1, 2)
    for pred, message in (
        (torch.zeros(3), "pred: expected Prediction"),
        (xl.Prediction(zero, zero, torch.tensor([math.nan]), one), "finite confidences"),
        (xl.Prediction(zero, zero + 3, torch.ones(1), one), "answered at exit 3, the policy has 3 exits"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.DriftMonitor(policy).update(pred)
    for unknown in (None, xl.types.Calibration(REQUEST, 100)):
        with pytest.raises(xl.errors.PolicyError, match="no calibration samples to compare with"):
            xl.DriftMonitor(xl.Policy((0.5,), calibration=unknown))
    with pytest.raises(xl.errors.InputError, match="policy: expected Policy"):
        xl.DriftMonitor(0.05)
    with pytest.raises(xl.errors.PolicyError, match="changed since it was calibrated"):
        xl.DriftMonitor(replace(xl.calibrate(random_trace(50), max_cost=0.9), thresholds=(0.1, 0.1)))
