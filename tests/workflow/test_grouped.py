"""Certificates on traces that name groups: whole groups propose or test, and each counts once."""

import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from tests.conftest import random_trace
from tests.workflow.test_certified import good_trace


def grouped(n: int = 3000, size: int = 5, **values) -> xl.Trace:
    return replace(good_trace(n, **values), groups=torch.arange(n) // size)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_accuracy_drop": 0.02, "max_divergence": 0.1},
        pytest.param({"max_class_accuracy_drop": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_groups_of_one_sample_change_nothing(limits):
    trace = good_trace()
    ids = torch.randperm(len(trace), generator=torch.Generator().manual_seed(1))
    expected = xl.calibrate(trace, **limits, delta=0.1)
    for equal in (False, True):
        policy = xl.calibrate(replace(trace, groups=ids), **limits, delta=0.1, equal_groups=equal)
        assert policy.thresholds == expected.thresholds
        assert replace(policy.calibration, request=expected.calibration.request) == expected.calibration


def test_a_certificate_counts_groups():
    policy = xl.calibrate(grouped(), max_accuracy_drop=0.02, max_disagreement=0.1, delta=0.1)
    record = policy.calibration
    assert record.groups == 600
    assert (record.certification.path_groups, record.certification.path_samples) == (240, 1200)
    assert record.certification.largest_group == 5
    assert [(test.groups, test.samples) for test in record.certification.tests] == [(360, 1800)] * 2
    assert all(test.test == "group_betting" for test in record.certification.tests)
    words = policy.certificate()
    assert "on new groups drawn like the 600 groups of the calibration (3,000 samples)" in words
    assert "This was tested on 360 groups (1,800 samples) that did not propose" in words
    assert "one of more than 5 samples counts as 5" in words
    assert 0.2 < record.cost < 0.9
    again = xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict())))
    assert again == policy


def test_no_group_is_in_both_parts(monkeypatch):
    """Temperatures are fitted on whole groups, none of which tests."""
    seen = {}

    def watch(scores, risks, cost, first, second, delta):
        seen.update(first=first, second=second)
        return original(scores, risks, cost, first, second, delta)

    from exitlens.workflow import calibration

    original = calibration.certify
    monkeypatch.setattr(calibration, "certify", watch)
    trace = grouped(size=7)
    xl.calibrate(trace, max_disagreement=0.1, delta=0.1)
    first, second = (set(trace.groups[seen[name]].tolist()) for name in ("first", "second"))
    assert not first & second
    assert len(first) + len(second) == trace.num_groups
    assert sorted([*seen["first"].tolist(), *seen["second"].tolist()]) == list(range(3000))


def test_only_membership_of_groups_matters():
    trace = grouped(size=6)
    renamed = replace(trace, groups=trace.groups * 3 - 10)
    assert xl.calibrate(renamed, max_disagreement=0.1, delta=0.1) == xl.calibrate(trace, max_disagreement=0.1, delta=0.1)
    empirical = [xl.calibrate(item, max_disagreement=0.1) for item in (trace, replace(trace, groups=None))]
    assert empirical[0].thresholds == empirical[1].thresholds
    assert empirical[0].calibration.cost == empirical[1].calibration.cost
    assert "Nothing is promised for new data" in empirical[0].certificate()


def test_too_few_groups_are_refused_with_the_number_needed():
    policy = xl.calibrate(grouped(size=60), max_accuracy_drop=0.02, delta=0.1)
    result = policy.calibration.certification
    assert policy.thresholds == (float("inf"),) * 2
    assert 150 < result.samples_needed < 300
    assert f"in 30 groups, 1800 samples, p-value {result.tests[0].p_value:.2g}): about" in policy.certificate()
    assert f"about {result.samples_needed} groups would be needed" in policy.certificate()
    with pytest.raises(xl.errors.CalibrationError, match=r"trace: 9 groups \(of 3000 samples\) can certify nothing"):
        xl.calibrate(replace(grouped(), groups=torch.arange(3000) % 9), max_disagreement=0.1, delta=0.1)
    assert xl.calibrate(replace(grouped(), groups=torch.arange(3000) % 9), max_disagreement=0.1).calibration.groups == 9


def test_groups_count_by_size_or_equally():
    """Errors sit in a tenth of the groups, which hold two thirds of the samples: in few groups, but in most samples."""
    sizes = torch.where(torch.arange(400) % 10 == 0, 20, 1)
    groups = torch.arange(400).repeat_interleave(sizes)
    n, large = len(groups), (sizes[groups] == 20)
    rng = torch.Generator().manual_seed(0)
    wrong = large & (torch.rand(n, generator=rng) < 0.3)
    logits = torch.zeros(n, 2, 2)
    logits[:, 0, 0] = torch.where(wrong, -3.0, 3.0) + torch.rand(n, generator=rng)
    logits[:, 1, 0] = 4
    trace = xl.Trace(logits, None, torch.zeros(n, 2), torch.tensor([0.3, 1.0]), groups=groups)
    sized = xl.calibrate(trace, max_disagreement=0.1, delta=0.1)
    equal = xl.calibrate(trace, max_disagreement=0.1, delta=0.1, equal_groups=True)
    truth = [xl.evaluate(trace, policy).disagreement for policy in (sized, equal)]
    assert truth[0] <= 0.1 < truth[1]
    assert "Every group counts the same, large or small" in equal.certificate()
    assert equal.calibration.certification.tests[0].mean < 0.06


def test_limits_on_classes_count_the_groups_of_the_class():
    policy = xl.calibrate(grouped(), max_class_accuracy_drop=0.06, delta=0.1)
    tests = policy.calibration.certification.tests
    assert [test.name for test in tests] == [f"max_class_accuracy_drop, class {c}" for c in (0, 1)]
    assert all(300 < test.groups <= 360 for test in tests)
    assert sum(test.samples for test in tests) == 1800
    assert policy.calibration.cost < 1


def test_repeated_samples_matter_between_groups_only():
    item = good_trace(400)
    rows = torch.arange(400).repeat_interleave(5)
    trace = xl.Trace(item.logits[rows], None, item.divergence[rows], item.cost, groups=rows)
    assert "repeated samples" not in xl.calibrate(trace, max_disagreement=0.2, delta=0.1).certificate()
    mixed = replace(trace, groups=torch.arange(2000) % 400)
    assert (
        "But only 400 of the samples are in one group only"
        in xl.calibrate(mixed, max_disagreement=0.2, delta=0.1).certificate()
    )


def test_unnamed_families_are_warned_about():
    item = random_trace(60)
    rows = torch.arange(60).repeat_interleave(10)
    logits = item.logits[rows] + 0.3 * random_trace(600, seed=1).logits
    trace = xl.Trace(logits, item.labels[rows], item.divergence[rows], item.cost)
    with pytest.warns(xl.errors.DataWarning, match=r"that follow one another look alike .*name the groups"):
        xl.calibrate(trace, max_disagreement=0.3, delta=0.1)
    xl.calibrate(replace(trace, groups=rows), max_disagreement=0.3, delta=0.1)
    xl.calibrate(replace(trace, groups=torch.arange(600)), max_disagreement=0.3, delta=0.1)  # said to be independent
    xl.calibrate(trace, max_disagreement=0.3)


def test_equal_groups_need_groups():
    with pytest.raises(xl.errors.InputError, match="equal_groups: this trace names no groups"):
        xl.calibrate(good_trace(50), max_disagreement=0.1, delta=0.1, equal_groups=True)
