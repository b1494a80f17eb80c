"""calibrate(delta=...): what is promised is kept, what cannot be promised is refused with its reason; groups count once."""

import json
import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.calibration import run_calibration
from exitlens.functional.risk import accuracy_drop, list_risks, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from tests.conftest import random_pixel_trace, random_trace


def good_trace(n: int = 1500, seed: int = 0, labelled: bool = True) -> xl.Trace:
    """Two classes; early exits are right wherever they are sure, and look where the final one looks."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=rng)
    sure = torch.rand(n, 3, generator=rng)
    sure[:, 2] = 0.9
    wrong = torch.rand(n, 3, generator=rng) < (0.5 * (1 - sure).pow(4))
    says = torch.where(wrong, 1 - labels[:, None], labels[:, None])
    logits = torch.nn.functional.one_hot(says, 2) * (6 * sure)[..., None]
    divergence = (0.2 * (1 - sure) + 0.02 * torch.rand(n, 3, generator=rng)) * torch.tensor([1.0, 1.0, 0.0])
    return xl.Trace(logits, labels if labelled else None, divergence, torch.tensor([0.2, 0.5, 1.0]))


def test_a_certificate_names_promises_and_evidence():
    trace = good_trace()
    policy = xl.calibrate(trace, max_accuracy_drop=0.02, max_divergence=0.1, delta=0.1)
    record, tested = policy.calibration, policy.calibration.certification
    assert record.limits == {"max_accuracy_drop": 0.02, "max_divergence": 0.1}
    assert (tested.delta, record.samples, tested.path_samples) == (0.1, 1500, 600)
    assert [one.name for one in tested.tests] == ["max_accuracy_drop", "max_divergence"]
    assert all(one.p_value <= 0.1 and one.samples == 900 for one in tested.tests)
    assert record.cost < 0.8
    exits = xl.route(trace, policy)
    assert trace.cost[exits].double().mean().item() == pytest.approx(record.cost)
    words = policy.certificate()
    assert words.count(". ") == 1
    promises = "With 90 % confidence", "at most 2 points less accurate", "at most 0.1)"
    for part in (*promises, "1,500 calibration samples", "900 samples"):
        assert part in words
    assert xl.Policy.from_dict(policy.to_dict()) == policy


@pytest.mark.slow
def test_test_samples_decide_only_where_the_path_ends():
    """Other labels in the part that tests: the same path, another end."""
    trace = good_trace()
    rows = torch.randperm(len(trace), generator=torch.Generator().manual_seed(0))[600:]
    labels = trace.labels.clone()
    labels[rows[:200]] = 1 - labels[rows[:200]]
    first = xl.calibrate(trace, max_accuracy_drop=0.02, delta=0.1)
    second = xl.calibrate(replace(trace, labels=labels), max_accuracy_drop=0.02, delta=0.1)
    assert first.temperatures == second.temperatures
    assert first.calibration.certification.path_length == second.calibration.certification.path_length


@pytest.mark.slow
def test_a_smaller_delta_or_limit_never_saves_more():
    trace = good_trace()
    costs = [xl.calibrate(trace, max_accuracy_drop=0.02, delta=d).calibration.cost for d in (0.4, 0.1, 0.02)]
    assert costs == sorted(costs)
    limits = [xl.calibrate(trace, max_disagreement=limit, delta=0.1).calibration.cost for limit in (0.2, 0.05, 0.01)]
    assert limits == sorted(limits)


@pytest.mark.slow
def test_without_labels_disagreement_and_divergence_are_certified():
    trace = good_trace(labelled=False)
    policy = xl.calibrate(trace, max_disagreement=0.05, max_divergence=0.1, delta=0.1)
    assert policy.calibration.cost < 0.9
    assert "gives another answer than the full network to at most 5 %" in policy.certificate()
    for name in ("max_accuracy_drop", "max_class_accuracy_drop"):
        with pytest.raises(xl.errors.InputError, match="labels"):
            xl.calibrate(trace, **{name: 0.1}, delta=0.1)


@pytest.mark.parametrize("delta", [None, pytest.param(0.1, marks=pytest.mark.slow)])
def test_every_class_has_its_own_limit(delta):
    """Class 1 loses at exit 0, class 0 does not: together they would pass."""
    n = 2000
    labels = (torch.arange(n) % 10 == 0).long()
    logits = torch.zeros(n, 2, 2)
    logits[:, 0, 0] = 3.0  # exit 0 always says 0
    logits[torch.arange(n), 1, labels] = 3.0
    logits[:, 0, 0] += torch.rand(n, generator=torch.Generator().manual_seed(0))
    trace = xl.Trace(logits, labels, torch.zeros(n, 2), torch.tensor([0.5, 1.0]))
    together = xl.calibrate(trace, max_accuracy_drop=0.15, delta=delta)
    assert together.calibration.cost == pytest.approx(0.5)
    each = xl.calibrate(trace, max_class_accuracy_drop=0.15, delta=delta)
    assert 0.5 < each.calibration.cost < 1
    drop = select_exits(accuracy_drop(trace), xl.route(trace, each))
    assert all(drop[labels == c].mean() <= 0.15 + 1e-6 for c in (0, 1))
    if delta:
        assert [item.name for item in each.calibration.certification.tests][1] == "max_class_accuracy_drop, class 1"
        assert "in every class" in each.certificate()


def test_a_refusal_says_why_and_how_many_samples_it_takes():
    few = xl.calibrate(good_trace(60), max_disagreement=0.01, delta=0.1)
    assert few.thresholds == (math.inf, math.inf)
    needed = few.calibration.certification.samples_needed
    assert needed >= 230 / 0.6
    assert f"about {needed} samples would be needed" in few.certificate()
    assert "The early exits never fire" in few.certificate()
    bad = good_trace(400)
    bad = replace(bad, divergence=torch.tensor([0.5, 0.5, 0.0]).repeat(400, 1))
    hopeless = xl.calibrate(bad, max_divergence=0.001, max_disagreement=0.001, delta=0.1)
    assert hopeless.thresholds == (math.inf, math.inf)
    assert hopeless.calibration.cost == pytest.approx(1.0)
    assert hopeless.calibration.certification.reason


@pytest.mark.slow
def test_refusals_give_true_reasons():
    alone = xl.Trace(torch.rand(200, 1, 3), None, torch.zeros(200, 1), torch.tensor([1.0]))
    refused = xl.calibrate(alone, max_disagreement=0.1, delta=0.1).calibration.certification
    assert refused.reason == "the network has no early exits"
    nothing = xl.calibrate(good_trace(400), max_accuracy_drop=0.0, delta=0.1)
    assert "can never be shown from samples" in nothing.calibration.certification.reason
    tiny = xl.calibrate(good_trace(2000), max_accuracy_drop=0.05, delta=1e-4)
    assert tiny.calibration.cost < 1  # the tests spare a part of delta, not a fixed one
    assert all(item.p_value <= 1e-4 for item in tiny.calibration.certification.tests)
    for limits in ({"max_accuracy_drop": 1e-320}, {"max_disagreement": 1e-320}, {"max_accuracy_drop": 0.0}):
        assert xl.calibrate(good_trace(20), **limits, delta=1e-3).thresholds == (math.inf, math.inf)


def test_a_certificate_names_only_tested_classes():
    """Ten classes, of which the calibration saw nine: nothing is said of the tenth."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (3000,), generator=rng)
    logits = 4 * torch.nn.functional.one_hot(labels, 10)[:, None].repeat(1, 2, 1).float()
    logits += 0.1 * torch.rand(logits.shape, generator=rng)
    trace = xl.Trace(logits, labels, torch.zeros(3000, 2), torch.tensor([0.5, 1.0]))
    policy = xl.calibrate(trace, max_class_accuracy_drop=0.1, delta=0.1)
    assert policy.calibration.classes == (9, 10)
    assert "in each of the 9 classes of 10 that were tested" in policy.certificate()
    assert "nearest to failing of 9" in policy.certificate()
    item = xl.Trace(logits, torch.zeros(3000).long(), torch.zeros(3000, 2), torch.tensor([0.5, 1.0]))
    assert xl.calibrate(item, max_class_accuracy_drop=0.5).num_exits == 2


def test_a_changed_policy_has_no_certificate():
    policy = xl.calibrate(good_trace(), max_disagreement=0.05, delta=0.1)
    assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict()))).certificate() == policy.certificate()
    for change in ({"thresholds": (0.2, 0.2)}, {"score": "margin"}, {"temperatures": (2.0, 1.0, 1.0)}, {"network": "x"}):
        other = replace(policy, **change)
        assert "Nothing is promised: this policy is not the one that was calibrated" in other.certificate()


def test_certificates_count_distinct_samples():
    item = good_trace(100)
    rows = torch.randint(100, (1000,), generator=torch.Generator().manual_seed(0))
    trace = xl.Trace(item.logits[rows], None, item.divergence[rows], item.cost)
    assert "only 100 of the samples are distinct" in xl.calibrate(trace, max_disagreement=0.2, delta=0.1).certificate()


def test_temperatures_are_followed_through_policies():
    """Fitted on A, taken over on B, and then to be used on A again: still A's."""
    a, b = good_trace(seed=1), good_trace(seed=2)
    first = xl.calibrate(a, max_accuracy_drop=0.05)
    second = xl.calibrate(b, max_accuracy_drop=0.05, temperatures=first)
    with pytest.raises(xl.errors.CalibrationError, match="fitted on samples of this trace"):
        xl.calibrate(a, max_accuracy_drop=0.05, delta=0.1, temperatures=second)


def test_max_cost_beside_a_certificate():
    trace = good_trace()
    policy = xl.calibrate(trace, max_disagreement=0.05, max_cost=0.9, delta=0.1)
    assert policy.calibration.cost <= 0.9
    with pytest.raises(xl.errors.CalibrationError, match="max_cost: the cheapest policy that can be certified costs"):
        xl.calibrate(trace, max_disagreement=0.001, max_cost=0.21, delta=0.1)


@pytest.mark.slow
def test_temperatures_of_other_data_but_not_of_these():
    trace = good_trace()
    fitted = xl.calibrate(good_trace(seed=5), max_accuracy_drop=0.05)
    policy = xl.calibrate(trace, max_accuracy_drop=0.05, delta=0.1, temperatures=fitted)
    assert policy.temperatures == fitted.temperatures
    mixed = xl.Trace(torch.cat([trace.logits, good_trace(seed=5).logits[:300]]), None, torch.zeros(1800, 3), trace.cost)
    for leaking, first in ((xl.calibrate(trace, max_accuracy_drop=0.05), trace), (fitted, mixed)):
        with pytest.raises(xl.errors.CalibrationError, match="temperatures: they were fitted on samples of this trace"):
            xl.calibrate(first, max_disagreement=0.05, delta=0.1, temperatures=leaking)
    second = replace(fitted, network="another")
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network another"):
        xl.calibrate(replace(trace, network="this"), max_accuracy_drop=0.05, temperatures=second)


def coin_trace(count: int, rate: float, seed: int) -> xl.Trace:
    """Two exits, equal scores everywhere, and a first exit that disagrees with the final one at this rate, by chance."""
    differs = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < rate
    early = torch.where(differs[:, None], torch.tensor([0.0, 2.0]), torch.tensor([2.0, 0.0]))
    logits = torch.stack([early, torch.tensor([2.0, 0.0]).expand(count, 2)], 1)
    return xl.Trace(logits, None, torch.zeros(count, 2), torch.tensor([0.5, 1.0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "requests",
    [
        [{"max_disagreement": limit} for limit in (0.1, 0.05, 0.03)],
        [{"max_disagreement": limit} for limit in (0.03, 0.05, 0.1)],
        [{"max_disagreement": 0.1, "seed": seed} for seed in range(8)],
    ],
    ids=["loosest first", "strictest first", "other splits"],
)
def test_delta_holds_when_users_ask_until_it_passes(requests):
    """Every policy that exits early is above all the limits, so each certificate would be wrong."""
    draws, delta, wrong, naive = 200, 0.3, 0, 0
    for draw in range(draws):
        trace = coin_trace(60, 0.1001, draw)
        for given in requests:
            try:
                wrong_now = not xl.calibrate(trace, **given, delta=delta).calibration.certification.reason
            except xl.errors.CalibrationError:
                break
            wrong += wrong_now
            if wrong_now:
                break
        for given in requests if "seed" in requests[0] and draw < 16 else ():
            if not xl.calibrate(replace(trace), **given, delta=delta).calibration.certification.reason:
                naive += 1
                break
    assert wrong / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    if "seed" in requests[0]:
        assert naive / 16 > 0.5  # what asking until it passes does without counting


def test_refused_certificates_spend_delta_and_granted_ones_do_not():
    trace = coin_trace(500, 0.05, seed=0)
    for limit in (0.3, 0.2, 0.15):  # loosest first: nothing is spent
        tested = xl.calibrate(trace, max_disagreement=limit, delta=0.1).calibration.certification
        assert (tested.level, tested.reason) == (0.1, "")
    assert tested.request_number == 3
    refused = xl.calibrate(trace, max_disagreement=0.01, delta=0.1)
    assert refused.calibration.certification.reason
    assert "spent a level of 0.1 on this" in refused.certificate()
    with pytest.raises(xl.errors.CalibrationError, match=r"delta: these samples refused .* spent a level of 0\.1"):
        xl.calibrate(trace, max_disagreement=0.12, delta=0.1)
    more = xl.calibrate(trace, max_disagreement=0.12, delta=0.15)
    assert more.calibration.certification.level == pytest.approx(0.05)
    assert "certificate 5 that these samples were asked for" in more.certificate()
    again = xl.calibrate(trace, max_disagreement=0.3, delta=0.1)  # the same request is no new one
    assert again.calibration.certification.request_number == 1
    assert xl.calibrate(trace, max_disagreement=0.01, delta=0.1) == refused
    assert len(trace.certificate_requests) == 5
    assert xl.calibrate(trace, max_disagreement=0.02).calibration.certification is None  # empirical mode spends nothing
    assert len(trace.certificate_requests) == 5


def test_naming_groups_does_not_forget_what_the_samples_were_asked():
    trace = coin_trace(500, 0.05, seed=0)
    assert not xl.calibrate(trace, max_disagreement=0.15, delta=0.1).calibration.certification.reason
    few = trace.with_groups(torch.arange(500) // 25)
    assert xl.calibrate(few, max_disagreement=0.15, delta=0.1).calibration.certification.reason
    for same in (trace, few, trace.with_groups(range(500))):
        with pytest.raises(xl.errors.CalibrationError, match="these samples refused"):
            xl.calibrate(same, max_disagreement=0.12, delta=0.1)


def grouped(n: int = 3000, size: int = 5, **values) -> xl.Trace:
    return replace(good_trace(n, **values), groups=torch.arange(n) // size)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_accuracy_drop": 0.02, "max_divergence": 0.1},
        pytest.param({"max_class_accuracy_drop": 0.05}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
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


@pytest.mark.slow
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
    few = replace(grouped(), groups=torch.arange(3000) % 9)
    for trace, message in ((random_trace(9), "9 samples"), (few, r"9 groups \(of 3000 samples\)")):
        with pytest.raises(xl.errors.CalibrationError, match=f"trace: {message} are too few to certify anything"):
            xl.calibrate(trace, max_disagreement=0.1, delta=0.1)
    assert xl.calibrate(few, max_disagreement=0.1).calibration.groups == 9
    with pytest.raises(xl.errors.InputError, match="equal_groups: this trace names no groups"):
        xl.calibrate(good_trace(50), max_disagreement=0.1, delta=0.1, equal_groups=True)


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
    words = xl.calibrate(mixed, max_disagreement=0.2, delta=0.1).certificate()
    assert "But only 400 of the samples are in one group only" in words


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


@pytest.mark.parametrize("score", ["mean_probability", "low_probability", "sure_share", None])
def test_limits_on_pixels_are_kept(score):
    trace, limits = random_pixel_trace(200), {"max_pixel_error_drop": 0.1, "max_miou_drop": 0.15}
    policy = xl.calibrate(trace, **limits, score=score)
    assert policy.score == (score or "mean_probability")
    assert policy.temperatures == (1.0, 1.0, 1.0)
    exits = xl.route(trace, policy)
    assert len(exits.unique()) > 1
    for risk in list_risks(trace, limits, torch.arange(200)):
        assert risk.mean(exits) <= risk.limit + 1e-9
    assert run_calibration(trace, policy.calibration.request) == policy
    assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_a_certificate_about_pixels_says_what_it_promises():
    trace = random_pixel_trace(800, classes=("sky", "sea", "sand"))
    policy = xl.calibrate(trace, max_miou_drop=0.3, max_missed_area={"sea": 0.6, 0: 0.7}, max_disagreement=0.6, delta=0.1)
    assert policy.calibration.certification.reason == ""
    assert policy.calibration.limits == {
        "max_miou_drop": 0.3,
        "max_disagreement": 0.6,
        "max_missed_area of sea": 0.6,
        "max_missed_area of sky": 0.7,
    }
    text = policy.certificate()
    assert "loses at most 30 points of an image's mean IoU against the full network, on average over images" in text
    assert "misses at most 60 % of the area of sea, on average over the images that have it" in text
    assert "answers at most 60 % of an image's pixels unlike the full network" in text
    dropped = xl.calibrate(replace(trace), max_pixel_error_drop=0.3, delta=0.1).certificate()
    assert "gets at most 30 points more of an image's pixels wrong than the full network, on average" in dropped
    assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_images_without_labelled_pixels_say_nothing():
    trace = random_pixel_trace(400)
    counts = trace.logits.confusion.clone()
    counts[:360] = 0
    blank = replace(trace, logits=replace(trace.logits, confusion=counts))
    limits = {"max_pixel_error_drop": 0.12, "max_miou_drop": 0.2}
    policy = xl.calibrate(blank, **limits)
    labelled = blank.select(torch.arange(360, 400))
    exits = xl.route(labelled, policy)
    assert all(risk.mean(exits) <= risk.limit + 1e-9 for risk in list_risks(labelled, limits, torch.arange(40)))
    reports = [xl.evaluate(each, policy).pixels for each in (blank, labelled)]
    assert reports[0].image_mean_iou_drop == reports[1].image_mean_iou_drop > 0


@pytest.mark.parametrize(
    ("classes", "limits", "expected"),
    [
        (("1", "0", "2"), {0: 0.9, "0": 0.8}, {"1": 0.9, "0": 0.8}),  # a number, and a name
        (("sky", "sea", "sand"), {0: 0.9, "sky": 0.8}, {"sky": 0.8}),
        ((), {0: 0.9}, {"0": 0.9}),
    ],
)
def test_limits_on_classes_by_number_are_kept_by_name(classes, limits, expected):
    trace = random_pixel_trace(100, classes=classes)
    policy = xl.calibrate(trace, max_missed_area=limits)
    assert policy.calibration.request.max_missed_area == expected
    again = xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict())))
    assert run_calibration(trace, again.calibration.request) == policy


def test_what_even_the_final_exit_misses_is_no_promise():
    trace = random_pixel_trace(100)
    with pytest.raises(
        xl.errors.CalibrationError, match=r"no policy found keeps {'max_missed_area of 1': 0.001}, not even the final"
    ):
        xl.calibrate(trace, max_missed_area={1: 0.001})
    with pytest.raises(xl.errors.CalibrationError, match="no policy found keeps"):
        xl.calibrate(trace, max_missed_area={1: 0.001}, folds=3)
    never = xl.calibrate(trace, max_missed_area={1: 0.001}, delta=0.1)
    assert never.thresholds == (math.inf, math.inf)
    assert "no early answer kept every limit" in never.calibration.certification.reason
    assert "The full network itself may miss more than that." in never.certificate()


def test_images_of_one_patient_are_one_unit():
    trace = random_pixel_trace(300).with_groups(torch.arange(300) // 3)
    policy = xl.calibrate(trace, max_pixel_error_drop=0.3, delta=0.1)
    assert policy.calibration.groups == 100
    assert "Only groups count as independent" in policy.certificate()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_accuracy_drop": 0.1},
            "max_accuracy_drop: it is for one class a sample or several labels a sample, this trace has one class a pixel",
        ),
        ({"max_miou_drop": 0.1, "gate": True}, "gate: it is for classes or labels of whole samples"),
        ({"max_miou_drop": 0.1, "score": "margin"}, "score: expected one of"),
        (
            {"max_miou_drop": 0.1, "temperatures": xl.types.Temperatures((2.0, 1.0, 1.0))},
            "temperatures: they are all 1 where logits are not kept",
        ),
        ({"max_missed_area": {"1": 2}}, r"max_missed_area of 1: expected a number in \[0, 1\]"),
        ({"max_missed_area": 0.1}, "max_missed_area: expected Mapping, got float"),
        ({"max_missed_area": {}}, "limits: expected at least one"),
        ({"max_missed_area": {0.5: 0.1}}, r"max_missed_area: expected str \| int, got float: pass names of classes"),
        ({"max_missed_area": {3: 0.1}}, "max_missed_area: expected numbers of classes below 3, got 3. Fix: "),
        ({"max_missed_area": {-1: 0.1}}, "max_missed_area: expected numbers of classes below 3, got -1"),
    ],
)
def test_what_calibration_on_pixels_refuses(given, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.calibrate(random_pixel_trace(50), **given)


@pytest.mark.parametrize("given", [{"max_miou_drop": 0.1}, {"max_missed_area": {0: 0.1}}])
def test_limits_on_pixels_are_for_pixels(given):
    with pytest.raises(xl.errors.InputError, match="it is for one class a pixel"):
        xl.calibrate(random_trace(50), **given)


@pytest.mark.long
@pytest.mark.parametrize(
    "limits",
    [{"max_pixel_error_drop": 0.12}, {"max_miou_drop": 0.18}, {"max_missed_area": {"1": 0.3}}, {"max_disagreement": 0.2}],
    ids=lambda limits: next(iter(limits)),
)
def test_certificates_about_pixels_are_broken_in_delta_of_the_draws_at_most(limits):
    """Draws of 150 images from 20,000, of which the true risk is known."""
    draws, delta, broken, granted, everything = 1000, 0.2, 0, 0, random_pixel_trace(20_000, k=2, seed=1)
    request = xl.CalibrationRequest(**limits, delta=delta)
    (risk,) = list_risks(everything, request.risk_limits, torch.arange(20_000))
    scores = score_early_exits(everything, xl.Policy.never(2, score="mean_probability"))
    rng = torch.Generator().manual_seed(0)
    for draw in range(draws):
        rows = torch.randint(20_000, (150,), generator=rng)
        policy = run_calibration(everything.select(rows), replace(request, seed=draw))
        granted += policy.thresholds[0] < math.inf
        broken += policy.thresholds[0] < math.inf and risk.mean(find_first_firing(scores, policy.thresholds)) > risk.limit
    assert granted / draws > 0.9
    assert broken / draws <= delta
