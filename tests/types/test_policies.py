"""Names of policies, and that each of them fits the network."""

import hashlib
import json
import math
from dataclasses import replace

import pytest

import exitlens as xl
from exitlens.types.policies import check_fit, check_name, check_named
from tests.conftest import random_trace

REQUEST = xl.CalibrationRequest(max_cost=1.0)


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
    ],
)
def test_bad_policies(values, message):
    with pytest.raises(xl.errors.PolicyError, match=message):
        xl.Policy(**values)


def test_policies_travel_as_json():
    gate = xl.types.Gate(((1.0, 0.0, 0.5, 0.1),) * 2, (0.2, math.inf))
    for policy in (
        xl.Policy((0.9, math.inf), "margin", (1.0, 2.0, 3.0), gate=gate),
        xl.calibrate(random_trace(50), max_cost=0.6),
    ):
        assert xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False))) == policy


def test_missing_values_are_named():
    with pytest.raises(xl.errors.PolicyError, match="thresholds, score, temperatures, network missing"):
        xl.Policy.from_dict({})


def test_the_rule_is_everything_but_the_calibration():
    policy = xl.Policy((0.5, math.inf), network="abc")
    values = {"thresholds": [0.5, "never"], "score": "max_probability", "temperatures": [1.0] * 3, "network": "abc"}
    values["gate"] = None
    assert policy.rule() == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    calibrated = replace(policy, calibration=xl.types.Calibration(REQUEST, 10, rule=policy.rule()))
    assert calibrated.rule() == policy.rule()
    assert not calibrated.is_changed
    assert replace(calibrated, score="margin").is_changed
    without_rule = replace(policy, calibration=xl.types.Calibration(REQUEST, 10), score="margin")
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
        check_fit(replace(GOOD, network="bbbb"), 2, "aaaa", "x.json, fast")
