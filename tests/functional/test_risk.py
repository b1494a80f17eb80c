from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import (
    Risk,
    accuracy_drop,
    disagreement,
    false_negative_drop,
    list_budgets,
    list_risks,
    select_exits,
)
from tests.conftest import random_trace, timed_trace


def test_risks_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    trace = xl.Trace(logits, torch.tensor([1, 1, 0]), torch.zeros(3, 2), torch.tensor([0.5, 1.0]))
    assert accuracy_drop(trace)[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert disagreement(trace)[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert accuracy_drop(trace)[:, 1].tolist() == disagreement(trace)[:, 1].tolist() == [0.0] * 3
    assert select_exits(accuracy_drop(trace), torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]


def test_a_limit_on_every_class_is_about_the_classes_that_are_there():
    trace = random_trace(200, c=4)
    rows = (trace.labels != 2).nonzero().squeeze(1)
    found = list_risks(trace, {"max_divergence": 0.3, "max_class_accuracy_drop": 0.1}, rows)
    assert [one.name for one in found] == ["max_divergence", *(f"max_class_accuracy_drop, class {c}" for c in (0, 1, 3))]
    assert torch.equal(found[-1].rows, trace.labels == 3)


def test_groups_are_the_units_of_a_risk():
    groups, exits = torch.tensor([1, 0, 1, 1, 2]), torch.zeros(5).long()
    one = Risk("r", torch.tensor([[1.0, 0], [1.0, 0], [0.0, 0], [-1.0, 0], [1.0, 0]]), 0.1, "ternary")
    assert torch.equal(one.units(exits), one.losses(exits))
    equal = one.with_groups(groups, torch.arange(5), equal=True)
    assert equal.units(exits).tolist() == [1.0, 0.0, 1.0]
    assert equal.mean(exits) == pytest.approx(2 / 3)
    sized = one.with_groups(groups, torch.arange(5), equal=False)
    assert sized.largest == 3
    assert sized.units(exits).tolist() == pytest.approx([0.1 + 0.9 / 3, 0.1 - 0.1, 0.1 + 0.9 / 3])
    assert sized.mean(exits) == pytest.approx(one.mean(exits)) == pytest.approx(0.4)
    few = one.with_groups(groups, torch.tensor([1, 4]), equal=False)  # a later group is larger than all of these
    assert few.largest == 1
    assert few.units(exits).tolist() == equal.units(exits).tolist()
    assert few.at(torch.tensor([0, 4])).units(exits[:2]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("equal", [True, False])
def test_a_column_weighs_groups_as_the_risk_does(equal):
    rng = torch.Generator().manual_seed(0)
    values, groups = torch.rand(60, 3, generator=rng), torch.randint(0, 9, (60,), generator=rng)
    for rows in (None, torch.rand(60, generator=rng) < 0.4):
        one = Risk("r", values, 0.1, "unit", rows).with_groups(groups, torch.arange(20), equal=equal)
        for k in range(3):
            mean = one.mean(torch.full((60,), k))
            assert one.column()[:, k].mean().item() == pytest.approx(mean, abs=1e-6)
            weights = torch.ones(60).double() if rows is None else rows.double()
            sizes = torch.zeros(9).double().index_add(0, groups, weights)
            sums = torch.zeros(9).double().index_add(0, groups, weights * values[:, k])
            means = torch.where(sizes > 0, sums / sizes.clamp_min(1), 0)
            counts_as = (sizes > 0).double() if equal else sizes.clamp_max(one.largest)
            assert mean == pytest.approx(((means * counts_as).sum() / counts_as.sum()).item())


def test_the_mean_of_the_units_is_above_the_limit_exactly_where_the_ratio_is():
    rng = torch.Generator().manual_seed(1)
    for _ in range(50):
        groups = torch.randint(0, 12, (80,), generator=rng)
        losses = (torch.rand(80, 2, generator=rng) < 0.2).float()
        one = Risk("r", losses, 0.2, "binary").with_groups(groups, torch.arange(80), equal=False)
        exits = torch.zeros(80).long()
        assert (one.units(exits).mean() > 0.2 + 1e-9) == (losses[:, 0].double().mean() > 0.2 + 1e-9)


def test_budgets_by_hand():
    trace = timed_trace(4)
    cost, mean = list_budgets(trace, 0.5, 5.25, None)
    assert cost.prices.tolist() == pytest.approx([0.2 / 1.05, 0.5 / 1.05, 1.0])
    assert cost.limit == pytest.approx(0.5 / 1.05)
    assert not cost.is_promised
    assert mean.prices.tolist() == pytest.approx([2 / 10.5, 5 / 10.5, 1.0])
    assert mean.limit == pytest.approx(0.5)
    assert mean.keeps(torch.tensor([0, 0, 1, 2]))  # 19.5 ms of 21
    assert not mean.keeps(torch.tensor([0, 1, 1, 2]))  # 22.5
    share = list_budgets(trace, None, 5.0, 75.0)[0]
    assert share.prices.tolist() == [0.0, 0.0, 1.0]
    assert (share.limit, share.last_free, share.is_kept_by_all) == (0.25, 1, False)
    assert share.keeps(torch.tensor([0, 1, 0, 2]))
    assert mean.last_free is None
    assert list_budgets(trace, None, 10.5, None)[0].is_kept_by_all


def test_a_budget_is_a_risk_of_every_sample():
    trace = timed_trace(4)
    share, mean = (list_budgets(trace, None, 5.0, p)[0].to_risk(4) for p in (75.0, None))
    assert (share.kind, mean.kind) == ("binary", "unit")
    assert share.mean(torch.tensor([0, 1, 2, 2])) == 0.5
    assert share.at(torch.tensor([0, 1])).values.tolist() == [[0.0, 0.0, 1.0]] * 2
    assert mean.mean(torch.tensor([0, 2, 2, 2])) == pytest.approx((2 / 10.5 + 3) / 4)


def _labels_trace() -> xl.Trace:
    """Two exits, three labels: the early exit misses one of two, adds one, and adds one to a sample without any."""
    told = [[[1, 0, 0], [1, 1, 0]], [[1, 0, 1], [0, 0, 1]], [[0, 1, 0], [0, 0, 0]]]
    truth = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    return xl.Trace(torch.tensor(told) * 4.0 - 2, truth, torch.zeros(3, 2), torch.tensor([0.5, 1.0]))


def test_risks_of_several_labels_by_hand():
    trace = _labels_trace()
    assert trace.answers[0].tolist() == [[True, False, False], [True, True, False]]
    assert accuracy_drop(trace)[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert disagreement(trace)[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert false_negative_drop(trace)[:, 0].tolist() == [0.5, 0.0, 0.0]
    swapped = replace(trace, logits=trace.logits.flip(1))
    assert false_negative_drop(swapped)[:, 0].tolist() == [-0.5, 0.0, 0.0]
    assert accuracy_drop(swapped)[:, 0].tolist() == [-1.0, -1.0, -1.0]


def test_limits_on_several_labels_are_about_the_samples_that_have_each():
    limits = {"max_false_negative_drop": 0.1, "max_class_accuracy_drop": 0.2}
    missed, *classes = list_risks(_labels_trace(), limits, torch.arange(3))
    assert missed.kind == "signed"
    assert [one.name for one in classes] == [f"max_class_accuracy_drop, class {c}" for c in range(3)]
    assert [one.mean(torch.zeros(3).long()) for one in classes] == [0.0, 1.0, 0.0]
    assert classes[1].rows.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("risk", "labelled", "message"),
    [
        (false_negative_drop, True, "max_false_negative_drop: it is for several labels"),
        (false_negative_drop, False, "labels: max_false_negative_drop needs them"),
        (accuracy_drop, False, "labels: accuracy_drop needs them"),
    ],
)
def test_risks_that_need_labels(risk, labelled, message):
    with pytest.raises(xl.errors.InputError, match=message):
        risk(random_trace(labelled=labelled))


def test_risks_of_pixels_by_hand():
    counts = torch.tensor(
        [
            [[[6, 2, 0], [0, 8, 0], [0, 0, 0]], [[8, 0, 0], [4, 4, 0], [0, 0, 0]]],
            [[[0, 0, 16], [0, 0, 0], [0, 0, 0]], [[16, 0, 0], [0, 0, 0], [0, 0, 0]]],
            [[[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]],  # no pixel has a class
        ]
    )
    differs = torch.tensor([[0.375, 0.0], [1.0, 0.0], [0.25, 0.0]])
    kept = xl.types.PixelSummary(torch.rand(3, 2, 3), torch.zeros(3, 2, 3), differs, counts)
    trace = xl.Trace(kept, None, torch.zeros(3, 2), torch.tensor([0.5, 1.0]), classes=("sky", "sea", "1"))
    limits = {"max_pixel_error_drop": 0.1, "max_miou_drop": 0.1, "max_disagreement": 0.1}
    limits |= {"max_missed_area of sea": 0.1, "max_missed_area of 0": 0.2}
    error, iou, disagreement_, sea, sky = list_risks(trace, limits, torch.arange(3))
    assert error.values[:, 0].tolist() == [2 / 16 - 4 / 16, 1.0, 0.0]
    assert error.rows.tolist() == iou.rows.tolist() == [True, True, False]
    assert error.mean(torch.zeros(3).long()) == (2 / 16 - 4 / 16 + 1) / 2
    early, final = (6 / 8 + 8 / 10) / 2, (8 / 12 + 4 / 8) / 2
    torch.testing.assert_close(iou.values[:, 0], torch.tensor([final - early, 1.0, 0.0]))
    assert disagreement_.values.tolist() == differs.tolist()
    assert (sea.values.tolist(), sea.rows.tolist()) == ([[0.0, 0.5], [0.0, 0.0], [0.0, 0.0]], [True, False, False])
    assert (sky.values[:, 0].tolist(), sky.rows.tolist()) == ([0.25, 1.0, 0.0], [True, True, False])
    assert [risk.kind for risk in (error, iou, disagreement_, sea)] == ["signed", "signed", "unit", "unit"]
    assert (sea.is_absolute, error.is_absolute, sky.limit) == (True, False, 0.2)
    assert sea.mean(torch.ones(3).long()) == 0.5  # of the one image that has it, at the final exit
    with pytest.raises(xl.errors.CalibrationError, match="max_missed_area: no image has '1'"):
        list_risks(trace, {"max_missed_area of 1": 0.1}, torch.arange(3))  # the class of that name, not of that number
    with pytest.raises(xl.errors.InputError, match="max_miou_drop needs labelled pixels and no image has any"):
        list_risks(trace.select(torch.tensor([2])), {"max_miou_drop": 0.1}, torch.arange(1))
    for name in ("se", "3", "-1"):
        with pytest.raises(
            xl.errors.InputError, match=f"expected classes among sky, sea, 1 or a number below 3, got '{name}'"
        ):
            list_risks(trace, {f"max_missed_area of {name}": 0.1}, torch.arange(3))
