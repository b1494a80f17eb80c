import json

import pytest
import torch

import exitlens as xl
from exitlens.types.calibrations import DriftReference, SampleSketch
from tests.conftest import random_trace, timed_trace

FORMER = {  # chosen_by of a policy in a bundle of format 1
    "mode": "certified",
    "limits": {"max_disagreement": 0.05},
    "samples": 100,
    "data": "abc",
    "distinct": 98,
    "fitted_on": [{"data": "abc", "sketch": ["00", "11"]}],
    "delta": 0.1,
    "path_samples": 40,
    "path": 12,
    "walked": 3,
    "tested": [{"name": "max_disagreement", "limit": 0.05, "test": "binomial", "samples": 60, "mean": 0.0, "p_value": 0.05}],
    "seed": 0,
    "reference": {"edges": [[0.5], []], "counts": [[3, 4], [93]], "confidence": 0.8},
    "cost": 0.9,
    "rule": "1234",
}


@pytest.mark.parametrize("delta", [None, 0.1])
def test_a_record_travels_as_json(delta):
    record = xl.calibrate(random_trace(300), max_class_accuracy_drop=0.2, max_cost=1.0, delta=delta).calibration
    assert record.classes == (4, 4)
    assert record.limits == {"max_class_accuracy_drop": 0.2, "max_cost": 1.0}
    assert xl.Calibration.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


def test_a_record_with_times_has_a_format_of_its_own():
    found = xl.calibrate(timed_trace(), max_ms=5, percentile=95).calibration.to_dict()
    assert (found["format"], found["percentile"], found["timing"]["ms"]) == (4, 95, [2.0, 5.0, 10.5])
    with pytest.raises(xl.PolicyError, match="damaged record"):
        xl.Calibration.from_dict(found | {"timing": {"ms": [1.0]}})
    with pytest.raises(xl.PolicyError, match="expected format 2 to 5, got 6: update exitlens"):
        xl.Calibration.from_dict(found | {"format": 6})
    plain = xl.calibrate(random_trace(), max_cost=0.5).calibration.to_dict()
    assert plain["format"] == 2
    assert not {"timing", "percentile", "groups"} & plain.keys()


def test_a_record_with_folds_has_a_format_of_its_own():
    record = xl.calibrate(timed_trace(), max_disagreement=0.1, folds=4).calibration
    found = record.to_dict()
    assert (found["format"], found["folds"], list(found["held_out"])) == (5, 4, ["max_disagreement"])
    assert xl.Calibration.from_dict(json.loads(json.dumps(found, allow_nan=False))) == record
    for damage in ({"held_out": [1]}, {"held_out": None}, {"folds": "many"}):
        with pytest.raises(xl.PolicyError, match="damaged record"):
            xl.Calibration.from_dict(found | damage)


def test_a_former_record_is_read_by_its_former_names():
    record = xl.Calibration.from_dict(FORMER)
    assert (record.samples, record.distinct_samples, record.cost, record.rule) == (100, 98, 0.9, "1234")
    found = record.certification
    assert (found.delta, found.path_samples, found.path_length, found.steps_tested) == (0.1, 40, 12, 3)
    assert found.tests[0].p_value == 0.05
    assert found.reason == ""
    assert record.reference == DriftReference(((0.5,), ()), ((3, 4), (93,)), 0.8)
    assert record.fitted_on == (SampleSketch("abc", ("00", "11")),)
    assert xl.Calibration.from_dict(record.to_dict()) == record


def test_the_first_records_held_little():
    record = xl.Calibration.from_dict({"mode": "empirical", "limits": {"max_cost": 0.5}, "samples": 100, "cost": 0.4})
    assert record == xl.Calibration({"max_cost": 0.5}, 100, 100, cost=0.4)


@pytest.mark.parametrize(
    "damage",
    [
        {"samples": None, "format": 2, "surprise": 1},
        {"format": 3},
        {"limits": 3},
        {"tested": [{"name": "x"}]},
        {"tested": None},
        {"fitted_on": ["abc"]},
        {"reference": {}},
        {"reference": {"edges": [[0.5]], "counts": [[3]], "confidence": 0.8}},
        {"reference": {"edges": [[]], "counts": [[0]], "confidence": 0.8}},
    ],
)
def test_damaged_records_are_refused(damage):
    with pytest.raises(xl.PolicyError, match="calibration: expected"):
        xl.Calibration.from_dict(FORMER | damage)


def test_shared_samples_are_found_by_the_sketch():
    one, other = random_trace(500, seed=1), random_trace(500, seed=2)
    both = xl.Trace(torch.cat([one.logits[:100], other.logits]), None, torch.zeros(600, 3), one.cost)
    found = SampleSketch.from_trace(one)
    assert len(found.sketch) == 64
    assert found.overlaps(one)
    assert found.overlaps(both)
    assert SampleSketch(found.data).overlaps(one)
    assert not found.overlaps(other)
    assert not SampleSketch().overlaps(other)
