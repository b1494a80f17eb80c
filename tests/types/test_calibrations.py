import json

import pytest

import exitlens as xl
from tests.conftest import random_trace, timed_trace


@pytest.mark.parametrize(
    ("trace", "request_"),
    [
        (random_trace(300), {"max_class_accuracy_drop": 0.2, "max_cost": 1.0}),
        (random_trace(300), {"max_class_accuracy_drop": 0.2, "max_cost": 1.0, "delta": 0.1}),
        (timed_trace(), {"max_ms": 5, "percentile": 95}),
        (timed_trace(), {"max_disagreement": 0.1, "folds": 4}),
    ],
)
def test_a_record_travels_as_json(trace, request_):
    record = xl.calibrate(trace, **request_).calibration
    assert record.request == xl.CalibrationRequest(**request_)
    assert record.limits == record.request.limits
    values = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert values["format"] == 1
    assert xl.Calibration.from_dict(values) == record


@pytest.mark.parametrize("written", [None, 2, 5, "1"])
def test_records_of_other_formats_say_what_to_do(written):
    values = xl.calibrate(random_trace(), max_cost=0.5).calibration.to_dict() | {"format": written}
    with pytest.raises(xl.PolicyError, match=r"expected a record of format 1, got .*Fix: calibrate again"):
        xl.Calibration.from_dict(values)


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
    with pytest.raises(xl.PolicyError, match="calibration: expected"):
        xl.Calibration.from_dict(values | damage)
