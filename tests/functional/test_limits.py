import pytest

import exitlens as xl
from exitlens.functional.limits import check_limits

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
