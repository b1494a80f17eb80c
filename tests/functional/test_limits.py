import pytest
import torch

import exitlens as xl
from exitlens.functional.limits import check_limits, require_positives
from tests.conftest import random_trace

GIVEN = {"max_accuracy_drop": None, "max_divergence": 0.2}


def test_limits_that_were_given_come_back():
    assert check_limits(GIVEN) == {"max_divergence": 0.2}
    assert check_limits(GIVEN, max_cost=0.5, delta=0.1, score="margin", gate=True) == {"max_divergence": 0.2}
    assert check_limits({"max_accuracy_drop": None}, max_cost=0.5) == {}


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        ({"a": None}, {}, "limits: expected at least one of a"),
        ({"a": True}, {}, "a: expected a number"),
        ({"a": float("nan")}, {}, "a: expected a number"),
        ({"a": 0.1}, {"max_cost": -1}, "max_cost: expected a number"),
        ({"a": 0.1}, {"score": "sure"}, "score: expected one of"),
        ({"a": 0.1}, {"delta": 0}, "delta: expected a number between"),
        ({"a": None}, {"max_cost": 0.5, "delta": 0.1}, "delta: it certifies limits on risks"),
        ({"max_divergence": 0.1}, {"gate": 1}, "gate"),
        ({"max_accuracy_drop": 0.1}, {"gate": True}, "give max_divergence, too"),
    ],
)
def test_requests_that_cannot_be_met(given, how, message):
    with pytest.raises(xl.InputError, match=message):
        check_limits(given, **how)


def test_every_label_needs_a_sample_that_has_it():
    logits, labels = torch.randn(20, 2, 3), torch.zeros(20, 3, dtype=torch.bool)
    labels[0, 0] = labels[3, 2] = True
    trace = xl.Trace(logits, labels, torch.zeros(20, 2), torch.tensor([0.5, 1.0]))
    for name in ("max_accuracy_drop", "max_class_accuracy_drop", "max_false_negative_drop"):
        with pytest.raises(xl.CalibrationError, match=f"none of the 20 samples has label 1, so {name}"):
            require_positives(trace, {"max_divergence": 0.1, name: 0.1})
    require_positives(trace, {"max_disagreement": 0.1})
    require_positives(random_trace(), {"max_accuracy_drop": 0.1})
