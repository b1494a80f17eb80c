import json
import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.workflow.evaluation import LabelReport
from tests.conftest import random_trace, timed_trace


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
    rows = [(row.label, row.samples, row.accuracy, row.final_accuracy) for row in report.classes]
    assert rows == [(0, 1, 1.0, 1.0), (1, 2, 0.5, 1.0)]  # the third sample is answered wrongly at exit 0
    assert [row.label for row in report.list_worst_classes()] == [1, 0]
    with pytest.raises(xl.errors.PolicyError):
        xl.evaluate(trace, xl.Policy((0.5, 0.5)))
    assert report.overthinking == pytest.approx((1 / 3, 0.0))  # the first is right at exit 0 and at the final one
    p = torch.tensor([3.0, 0.0]).softmax(0)[0].item()
    half = torch.tensor([0.1, 0.0]).softmax(0)[0].item()
    assert report.exits[0].brier == pytest.approx(2 * ((1 - p) ** 2 + half**2 + p**2) / 3)
    assert report.exits[0].risk_coverage == pytest.approx((0.5 + 0.5 + 2 / 3) / 3)  # two are equally sure, one is right


def test_summaries_word_gains_and_drops():
    logits = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[3.0, 0.0], [3.0, 0.0]]])  # exit 0 is right twice, the final one once
    trace = xl.Trace(logits, torch.tensor([0, 0]), torch.zeros(2, 2), torch.tensor([0.4, 1.0]))
    last = repr(xl.evaluate(trace, xl.Policy((0.5,)))).splitlines()[-2]
    assert last.startswith("routed: accuracy 100.0%, 50.0 points more accurate than the final exit, cost 0.400, ")
    assert "accuracy 50.0%, drop 0.0%, cost" in repr(xl.evaluate(trace, xl.Policy.never(2)))
    swapped = xl.Trace(logits.flip(1), torch.tensor([0, 0]), torch.zeros(2, 2), torch.tensor([0.4, 1.0]))
    assert "accuracy 50.0%, drop 50.0%, cost" in repr(xl.evaluate(swapped, xl.Policy((0.5,))))


def test_summaries_word_false_negatives():
    few, many = (LabelReport(0.9, 0.1, drop, (0.9,), (0.1,)) for drop in (-0.02, 0.013))
    assert "false negatives 10.0% (2.0 points fewer than the final exit)" in str(few)
    assert "false negatives 10.0% (1.3 points more than the final exit)" in str(many)


def test_reports_show_the_traces_milliseconds():
    trace = timed_trace()
    report = xl.evaluate(trace, xl.Policy.never(3))
    assert report.ms == pytest.approx(10.5)
    assert [row.ms for row in report.exits] == [2.0, 5.0, 10.5]
    assert json.loads(json.dumps(report.to_dict()))["timing"]["batch_size"] == 64
    head, first, *_, last, _ = repr(report).splitlines()
    assert head.split()[:3] == ["exit", "ms", "cost"]
    assert first.split()[:3] == ["0", "2", "0.200"]
    assert "10.5 ms on average, 2 (1.9 to 2.1), 5 (4.9 to 5.1), 10.5 (10.4 to 10.6) ms at the exits, with quartiles" in last
    assert ">ms</th>" in report._repr_html_()
    plain = xl.evaluate(random_trace(), xl.Policy.never(3))
    assert (plain.ms, plain.timing, plain.exits[0].ms) == (None, None, None)
    assert " ms" not in repr(plain)
    assert plain.to_dict()["timing"] is None


def test_the_never_exit_policy_is_the_final_exit():
    trace = random_trace()
    report = xl.evaluate(trace, xl.Policy.never(3))
    assert report.accuracy == report.exits[-1].accuracy
    assert report.accuracy_drop == report.divergence == 0
    assert report.cost == pytest.approx(1.0)


def test_curve_reaches_from_the_first_exit_to_the_best_that_thresholds_can_do():
    trace = random_trace()
    report = xl.evaluate(trace, xl.Policy.never(3))
    assert report.curve[0] == pytest.approx((0.2, report.exits[0].accuracy))
    assert report.curve[-1][0] <= 1.0
    assert list(report.curve) == sorted(report.curve)
    assert [y for _, y in report.curve] == sorted({y for _, y in report.curve})  # dearer is better, or not there
    assert max(y for _, y in report.curve) >= report.exits[-1].accuracy


def test_unlabelled_traces_have_no_accuracy(net, images):
    trace = xl.collect(net, images)
    report = xl.evaluate(trace, xl.Policy((0.9, 0.9)))
    assert report.accuracy is None
    assert report.exits[0].calibration_error is report.exits[0].brier is report.exits[0].risk_coverage is None
    assert report.overthinking is None
    cc = report.exits[0].consistency["cc"]
    assert cc["skill"] == pytest.approx((cc["value"] - cc["null"]) / (1 - cc["null"]))
    assert "skill" not in report.exits[0].consistency["kl"]
    json.dumps(report.to_dict())
    assert "final" not in str(report)
    assert "routed" in str(report)


def test_many_classes_show_the_worst():
    trace = random_trace(n=4000, c=300)
    report = xl.evaluate(trace, xl.Policy((0.5, 0.5)))
    counts = torch.bincount(trace.labels, minlength=300)
    assert [row.samples for row in report.classes] == counts[counts > 0].tolist()
    total = sum(row.accuracy * row.samples for row in report.classes) / len(trace)
    assert total == pytest.approx(report.accuracy, abs=1e-6)
    worst = report.list_worst_classes()
    assert len(worst) == 10
    assert max(row.accuracy for row in worst) <= min(r.accuracy for r in report.classes if r not in worst)
    assert xl.evaluate(random_trace(labelled=False), xl.Policy.never(3)).classes == ()


@pytest.mark.parametrize("task", ["classes", "multilabel"])
def test_calibration_error_of_routed_answers_by_hand(task):
    """Exit 0 answers the first half with probability 0.8, the final exit the second with 0.6; half of each are right."""
    logits = torch.zeros(8, 2, 2)
    logits[:, :, 0] = math.log(4)
    logits[4:, 0], logits[4:, 1, 0] = 0.0, math.log(1.5)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    if task == "multilabel":  # both labels with the same sureness: told, and right half of the time
        logits[:, :, 1] = logits[:, :, 0]
        labels = torch.stack([labels, labels], 1)
    trace = xl.Trace(logits, labels, torch.zeros(8, 2), torch.tensor([0.5, 1.0]))
    policy = xl.Policy((0.7,), score="max_probability" if task == "classes" else "decided")
    assert xl.route(trace, policy).tolist() == [0] * 4 + [1] * 4
    report = xl.evaluate(trace, policy)
    assert report.calibration_error == pytest.approx((0.3 + 0.1) / 2, abs=1e-6)
    assert repr(report).endswith("\nconfidences are off by 20.0% on average")
    assert xl.evaluate(replace(trace, labels=None), policy).calibration_error is None
