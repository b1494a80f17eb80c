"""What policies and their records say, by hand; names of policies, and that each of them fits the network."""

import hashlib
import json
import math
from dataclasses import asdict, replace

import pytest

import exitlens as xl
from exitlens.types.policies import Certification, RiskTest, check_name, check_named, write_certificate
from tests.conftest import make_timing, random_trace


@pytest.mark.parametrize("written", [None, 2, 5, "1"])
def test_records_of_other_formats_say_what_to_do(written):
    values = xl.calibrate(random_trace(), max_cost=0.5).calibration.to_dict() | {"format": written}
    with pytest.raises(xl.errors.PolicyError, match=r"expected a record of format 1, got .*Fix: calibrate again"):
        xl.types.Calibration.from_dict(values)


@pytest.mark.parametrize(
    "damage",
    [
        {"surprise": 1},
        {"request": 3},
        {"request": {"max_cost": 7}},
        {"request": {"max_cost": 0.5, "temperatures": [1.0]}},
        {"certification": {"tests": [{"name": "x"}]}},
        {"certification": {"tests": None}},
        {"fitted_on": ["abc"]},
        {"timing": {"ms": [1.0]}},
        {"held_out": [1]},
        {"reference": {}},
        {"reference": {"edges": [[0.5]], "counts": [[3]], "confidence": 0.8}},
        {"reference": {"edges": [[]], "counts": [[0]], "confidence": 0.8}},
    ],
)
def test_damaged_records_are_refused(damage):
    values = xl.calibrate(random_trace(), max_cost=0.5).calibration.to_dict()
    with pytest.raises(xl.errors.PolicyError, match="calibration: expected"):
        xl.types.Calibration.from_dict(values | damage)


TEST = RiskTest("max_divergence", 0.1, "betting", 60, 0.0512, 0.02)
REQUEST = xl.CalibrationRequest(max_divergence=0.1, delta=0.1)
RECORD = xl.types.Calibration(REQUEST, 100, 100, cost=0.5, certification=Certification(0.1, 0.1, 1, 40, 5, 3, (TEST,)))


def test_a_promise_by_hand():
    assert write_certificate(RECORD, "abc") == (
        "With 90 % confidence, on new data drawn like the 100 calibration samples, the network abc under this policy looks "
        "where the full network looks (mean Jensen-Shannon divergence of its attention maps at most 0.1). This was tested "
        "on 60 samples that did not propose the thresholds (divergence 0.0512 seen, betting bound, p = 0.02), and early "
        "exits made the mean cost 50 % of the full network's."
    )


def test_promises_about_several_labels():
    request = xl.CalibrationRequest(max_accuracy_drop=0.02, max_class_accuracy_drop=0.1, max_false_negative_drop=0.01)
    tests = (RiskTest("max_false_negative_drop", 0.01, "signed_betting", 60, 0.002, 0.03),)
    record = replace(RECORD, request=request, classes=(3, 3), certification=replace(RECORD.certification, tests=tests))
    text = write_certificate(record, "", "multilabel")
    assert "gets all labels of a sample right at most 2 points less often than the full network" in text
    assert "finds every label, where a sample has it, at most 10 points less often" in text
    assert "misses at most 1 point more of the labels that a sample has than the full network, on average" in text
    assert "false negative drop 0.0020 seen, betting bound on losses and gains" in text
    assert "accurate" not in text


def test_what_else_it_says():
    assert "set by hand" in write_certificate(None, "")
    empirical = write_certificate(replace(RECORD, certification=None), "")
    assert "Nothing is promised for new data: the limits (divergence at most 0.1) hold on the 100 samples" in empirical
    folded = xl.CalibrationRequest(max_divergence=0.1, folds=5)
    held = replace(RECORD, request=folded, certification=None, held_out={"max_divergence": 0.0912})
    text = write_certificate(held, "")
    assert "hold on the 100 samples, and by cross-validation in 5 folds, each routed by" in text
    assert "what the others chose (divergence 0.0912). Expect new data to lose about that much;" in text
    assert "hold on the 100 samples of 20 groups, and" in write_certificate(replace(held, groups=20), "")
    classes = {f"max_class_accuracy_drop, class {c}": c / 100 for c in range(9)}
    many = write_certificate(replace(held, held_out=classes), "")
    assert "(the largest of 9: class accuracy drop, class 8 0.0800)" in many
    refused = replace(RECORD, certification=replace(RECORD.certification, reason="too few samples"))
    assert "never fire" in write_certificate(refused, "")
    spent = "The samples have spent a level of 0.1 on this: another limit needs other samples, or more delta than before."
    assert write_certificate(refused, "").endswith(f"Reason: too few samples. {spent}")
    assert "only 7 of the samples are distinct" in write_certificate(replace(RECORD, distinct_samples=7), "")


def test_times_are_limits_of_what_they_were_measured_on():
    record = xl.types.Calibration(xl.CalibrationRequest(max_ms=5.0), 100, 100, timing=make_timing())
    where = "for batches of 64 on Slow 9000, 2 threads) hold on the 100 samples"
    assert f"the limits (mean time at most 5 ms {where}" in write_certificate(record, "")
    most = write_certificate(replace(record, request=xl.CalibrationRequest(max_ms=5.0, percentile=99.5)), "")
    assert f"the limits (time of 99.5 % of the samples at most 5 ms {where}" in most


def test_of_many_tests_the_nearest_to_failing_is_shown():
    request = xl.CalibrationRequest(max_class_accuracy_drop=0.01, delta=0.1)
    tests = tuple(RiskTest(f"max_class_accuracy_drop, class {c}", 0.01, "paired", 60, None, c / 100) for c in range(5))
    record = replace(RECORD, request=request, classes=(5, 6), certification=replace(RECORD.certification, tests=tests))
    words = write_certificate(record, "")
    assert "at most 1 point less accurate than the full network in each of the 5 classes of 6 that were tested" in words
    assert "nearest to failing of 5: class accuracy drop, class 4 none seen, exact test for pairs, p = 0.04" in words


def test_a_certificate_counts_what_the_samples_were_asked_before():
    third = replace(RECORD, certification=replace(RECORD.certification, request_number=3, level=0.04))
    text, count = write_certificate(third, ""), "It is certificate 3 that these samples were asked for"
    assert text.startswith("With 90 % confidence")
    assert text.endswith(f"{count}: the confidence is that in all that were given, and this one was tested at level 0.04.")


COST = xl.CalibrationRequest(max_cost=1.0)
GATE = xl.types.Gate(((1.0, 0.5, 0.1, 0.2, -1.0),) * 2, (0.2, math.inf))
BINDING = xl.types.BindingCertificate(
    0.2, 0.1, 0.9, 0.94, 100, None, ((60, 0.9), (20, 1.0), (20, None)), "another", 0.2, 100
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thresholds": (math.nan,)}, "thresholds"),
        ({"thresholds": ("high",)}, "numbers"),
        ({"thresholds": 0.9}, "numbers"),
        ({"thresholds": (0.5,), "score": "x"}, "score"),
        ({"thresholds": (0.5,), "temperatures": (1.0,)}, "temperatures"),
        ({"thresholds": (0.5,), "temperatures": (1.0, 0.0)}, "temperatures"),
        ({"thresholds": (0.5,), "calibration": {"limits": {}}}, "calibration: expected a Calibration or None, got dict"),
        ({"thresholds": (0.5,), "gate": {}}, "gate: expected a Gate or None, got dict. Fix: "),
        ({"thresholds": (0.5,), "gate": GATE}, "gate: expected a Gate for 1 early exits, got one for 2. Fix: "),
        ({"thresholds": (0.5,), "binding": {}}, "binding: expected a BindingCertificate or None, got dict. Fix: "),
        ({"thresholds": (0.5,), "binding": BINDING}, "binding: expected a certificate for 2 exits, got one for 3. Fix: "),
    ],
)
def test_bad_policies(values, message):
    with pytest.raises(xl.errors.PolicyError, match=message):
        xl.Policy(**values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"thresholds": 3}, "thresholds"),
        ({"thresholds": ["high", 0.5]}, "thresholds"),
        ({"temperatures": None}, "temperatures"),
        ({"gate": 3}, "gate: expected weights and confidences, got 3. Fix: "),
        ({"gate": {}}, "gate: expected weights and confidences, got {}. Fix: "),
        ({"gate": {"weights": None}}, "gate: expected rows of numbers as weights"),
        ({"gate": {"weights": [[0] * 8] * 2, "confidences": 3}}, "numbers as confidences, got .*int.*Fix: "),
        ({"binding": 3}, "binding: expected what certify_binding wrote, got a damaged record .* Fix: "),
        ({"binding": {"area": 0.2}}, "binding: expected what certify_binding wrote"),
        ({"binding": asdict(BINDING) | {"by_exit": [[60]] * 3}}, "binding: expected what certify_binding wrote"),
        ({"binding": asdict(BINDING) | {"share": math.inf}}, "binding: expected what certify_binding wrote"),
    ],
)
def test_damaged_policies_are_refused(damage, message):
    with pytest.raises(xl.errors.PolicyError, match=message):
        xl.Policy.from_dict(xl.Policy((0.5, 0.5)).to_dict() | damage)


def test_a_valid_promise_of_binding_follows_whatever_else_is_promised():
    policy, request = xl.Policy((0.5, 0.5)), xl.CalibrationRequest(max_divergence=0.1)
    binding = replace(BINDING, rule=policy.rule_hash())
    certified = replace(RECORD, rule=policy.rule_hash())
    nothing = "Nothing is promised of accuracy and cost"
    for record, start in (
        (None, f"{nothing}: these thresholds were set by hand."),
        (replace(certified, rule="another"), f"{nothing}: this policy is not the one that was calibrated"),
        (replace(certified, request=request, certification=None), f"{nothing} for new data: the limits"),
        (certified, "With 90 % confidence, on new data"),
    ):
        promised = replace(policy, calibration=record, binding=binding)
        assert promised.certificate().startswith(start)
        assert promised.certificate().endswith(f". {binding}")
        assert promised.describe_binding(0) == binding.describe(0)
        without = replace(promised, binding=BINDING)  # of another policy
        assert "decides" not in without.certificate() + without.describe_binding(0)
        assert "of accuracy and cost" not in without.certificate()


def test_policies_travel_as_json_and_missing_values_are_named():
    policy = xl.Policy((0.9, math.inf), "margin", (1.0, 2.0, 3.0), gate=GATE)
    assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False))) == policy
    with pytest.raises(xl.errors.PolicyError, match="thresholds, score, temperatures, network missing"):
        xl.Policy.from_dict({})


def test_the_rule_is_everything_but_the_calibration():
    policy = xl.Policy((0.5, math.inf), network="abc")
    values = {"thresholds": [0.5, "never"], "score": "max_probability", "temperatures": [1.0] * 3, "network": "abc"}
    values["gate"] = None
    assert policy.rule_hash() == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    calibrated = replace(policy, calibration=xl.types.Calibration(COST, 10, rule=policy.rule_hash()))
    assert calibrated.rule_hash() == policy.rule_hash()
    assert not calibrated.is_changed
    assert replace(calibrated, score="margin").is_changed
    without_rule = replace(policy, calibration=xl.types.Calibration(COST, 10), score="margin")
    assert not without_rule.is_changed


def test_the_score_says_what_a_policy_is_for():
    decided = xl.Policy((0.9,), "decided")
    assert (decided.task, xl.Policy((0.9,)).task) == ("multilabel", "classes")
    assert xl.Policy.from_dict(decided.to_dict()) == decided
    decided.check(2, "", "multilabel")
    with pytest.raises(xl.errors.PolicyError, match=r"'decided' is for several labels a sample, .* has one class"):
        decided.check(2, "", "classes")
    with pytest.raises(xl.errors.PolicyError, match="by hand give score='decided'"):
        xl.Policy((0.9,)).check(2, "", "multilabel")


@pytest.mark.parametrize("name", ["f", "fast", "90-percent_sure", "-", "a" * 40])
def test_names(name):
    check_name(name, "name")
    check_named({name: xl.Policy((0.5,))}, 2, "aaaa")


@pytest.mark.parametrize("name", ["", "Fast", "a b", "a/b", "..", "fast.json", "fast\n", "ä", "a" * 41, 3, None])
def test_what_is_no_name(name):
    with pytest.raises(xl.errors.InputError, match=r"name: expected names of 1 to 40 characters a-z, 0-9, _ and -, got "):
        check_name(name, "name")


GOOD = xl.Policy((0.5,))


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"default": GOOD}, "policies: 'default' is what the bundle's own policy is called"),
        ({"good": GOOD, "fast": xl.Policy((0.5, 0.5))}, r"^policies, fast: it has 2 thresholds for 3 exits"),
        ({"fast": GOOD.to_dict()}, "policies, fast: expected Policy, got dict"),
        ([GOOD], "policies: expected Mapping, got list"),
    ],
)
def test_errors_say_which_policy_it_is(policies, message):
    with pytest.raises((xl.errors.InputError, xl.errors.PolicyError), match=message):
        check_named(policies, 2, "aaaa")
    with pytest.raises(xl.errors.PolicyError, match=r"^x\.json, fast: it was calibrated for network bbbb, this is aaaa"):
        replace(GOOD, network="bbbb").check(2, "aaaa", place="x.json, fast")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperatures": (2.0, 1.0)}, "temperatures: those other than 1 are for classes or labels of whole samples"),
        ({"gate": xl.types.Gate(((1, 0, 0, 0, 0),))}, "gate: it is for classes or labels of whole samples"),
    ],
)
def test_policies_for_pixels_have_neither_gate_nor_temperatures(given, message):
    assert xl.Policy((0.5,), score="sure_share").task == "segmentation"
    with pytest.raises(xl.errors.PolicyError, match=message):
        xl.Policy((0.5,), score="sure_share", **given)
