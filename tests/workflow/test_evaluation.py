"""evaluate, sweep and their like: by hand, against brute force, and bands that hold what they say."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import exitlens as xl
from exitlens.workflow.evaluation import LabelReport, _find_bands
from tests.conftest import make_pixel_set, make_unet, random_pixel_trace, random_trace, timed_trace


def test_report_by_hand():
    logits = torch.tensor([[[3.0, 0.0], [3.0, 0.0]], [[0.1, 0.0], [0.0, 3.0]], [[3.0, 0.0], [0.0, 3.0]]])
    trace = xl.Trace(logits, [0, 1, 1], [[0.2, 0.0], [0.4, 0.0], [0.6, 0.0]], [0.4, 1.0])
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
    assert (report.exits[0].rescued, report.exits[0].spoiled, report.exits[1].warning) == (pytest.approx(2 / 3), 0, None)
    assert report.exits[0].warning == pytest.approx(
        0.75
    )  # of the two that need the final exit, one scores as the first does
    assert report.oracle == ((pytest.approx(0.4), pytest.approx(1 / 3)), (pytest.approx(0.8), 1.0))
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
    assert first.split()[:4] == ["exit", "0", "2", "0.200"]
    assert "10.5 ms on average, 2 (1.9 to 2.1), 5 (4.9 to 5.1), 10.5 (10.4 to 10.6) ms at the exits, with quartiles" in last
    assert ">ms</th>" in report._repr_html_()
    plain = xl.evaluate(random_trace(), xl.Policy.never(3))
    assert (plain.ms, plain.timing, plain.exits[0].ms) == (None, None, None)
    assert " ms" not in repr(plain)
    assert plain.to_dict()["timing"] is None


def test_the_never_exit_policy_is_the_final_exit_and_the_curve_begins_at_the_first():
    report = xl.evaluate(random_trace(), xl.Policy.never(3))
    assert report.accuracy == report.exits[-1].accuracy
    assert report.accuracy_drop == report.divergence == 0
    assert report.cost == pytest.approx(1.0)
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
    assert "final exit" not in str(report)
    assert [line[:7].strip() for line in str(report).splitlines()[1:4]] == ["exit 0", "exit 1", "final"]
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
    assert repr(report).endswith("\ncalibration error of the routed answers: confidences are off by 20.0% on average")
    assert xl.evaluate(replace(trace, labels=None), policy).calibration_error is None


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
    unlabelled = xl.sweep(random_trace(300, labelled=False), score="entropy")
    assert {point.accuracy for point in unlabelled} == {None}
    assert unlabelled[-1].agreement.value > 0.9


@pytest.mark.slow
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


@pytest.mark.slow
def test_bands_cover_all_means_at_once():
    rng, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        x = torch.rand(8, 300, generator=rng)
        covered += all(b.low <= 0.5 <= b.high for b in _find_bands(x, 0.9))
    assert 0.83 <= covered / 200 <= 0.97
    assert _find_bands(torch.ones(2, 50), 0.95)[0] == xl.types.ConfidenceInterval(1.0, 1.0, 1.0)


@pytest.mark.slow
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


def test_a_report_of_pixels_sums_the_counts_first():
    trace = random_pixel_trace(50, classes=("sky", "sea", "sand"))
    policy = xl.Policy((0.8, 0.5), score="mean_probability")
    report, exits = xl.evaluate(trace, policy), xl.route(trace, policy)
    routed = torch.stack([trace.logits.confusion[i, k] for i, k in enumerate(exits.tolist())]).sum(0).double()
    final = trace.logits.confusion[:, -1].sum(0).double()
    ious = [
        [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(3)]
        for counts in (routed, final)
    ]
    assert report.pixels.iou == pytest.approx([value.item() for value in ious[0]])
    assert report.pixels.final_iou == pytest.approx([value.item() for value in ious[1]])
    assert report.pixels.mean_iou == pytest.approx(sum(report.pixels.iou) / 3)
    assert report.pixels.mean_iou_drop == pytest.approx(sum(report.pixels.final_iou) / 3 - report.pixels.mean_iou)
    assert report.pixels.accuracy == pytest.approx((routed.diagonal().sum() / routed.sum()).item())
    assert report.accuracy == pytest.approx(report.pixels.accuracy)  # all images have as many pixels
    assert report.disagreement == pytest.approx(trace.disagreement[torch.arange(50), exits].mean().item())
    assert (report.overthinking, report.oracle, report.classes, report.calibration_error) == (None, (), (), None)
    assert "mean IoU" in repr(report)
    assert len(report.exits) == 3
    assert report.pixels.classes == ("sky", "sea", "sand")
    assert xl.sweep(trace, most=5)[0].accuracy is not None
    assert [point.accuracy for point in xl.measure_anytime(trace)] == pytest.approx(trace.accuracy.mean(0).tolist())
    assert len(xl.measure_budgeted_batch(trace, trace, points=3)) == 3
    json.dumps(report.to_dict())


def test_a_report_of_pixels_without_labels():
    trace = random_pixel_trace(20)
    trace = replace(trace, logits=replace(trace.logits, confusion=None))
    report = xl.evaluate(trace, xl.Policy((0.5, 0.5), score="sure_share"))
    assert (report.pixels, report.accuracy, report.accuracy_drop) == (None, None, None)
    with pytest.raises(xl.errors.InputError, match="labels: measure_anytime needs a trace with labels"):
        xl.measure_anytime(trace)


def test_images_without_a_labelled_pixel_are_not_right():
    net, data = make_unet(), make_pixel_set(12)
    data.labels[:4] = 255
    whole, known = (
        xl.evaluate(xl.collect(net, part), xl.Policy((0.5, 0.5), "mean_probability"))
        for part in (data, data.subset(torch.arange(4, 12)))
    )
    assert (whole.accuracy, whole.accuracy_drop) == pytest.approx((known.accuracy, known.accuracy_drop))
    assert [row.accuracy for row in whole.exits] == pytest.approx([row.accuracy for row in known.exits])
