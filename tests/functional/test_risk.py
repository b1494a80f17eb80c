import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import Risk, accuracy_drop, check_limits, disagreement, list_risks, select_exits
from tests.conftest import random_trace

GIVEN = {"max_accuracy_drop": None, "max_divergence": 0.2}


def test_risks_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    trace = xl.Trace(logits, torch.tensor([1, 1, 0]), torch.zeros(3, 2), torch.tensor([0.5, 1.0]))
    assert accuracy_drop(trace)[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert disagreement(trace)[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert accuracy_drop(trace)[:, 1].tolist() == disagreement(trace)[:, 1].tolist() == [0.0] * 3
    assert select_exits(accuracy_drop(trace), torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]


def test_accuracy_drop_needs_labels():
    with pytest.raises(xl.InputError, match="labels"):
        accuracy_drop(random_trace(labelled=False))


def test_a_column_has_the_mean_of_its_rows():
    rows = torch.tensor([True, False, True, False])
    one = Risk("r", torch.tensor([[1.0, 0], [1.0, 0], [0.0, 0], [1.0, 0]]), 0.1, "binary", rows)
    assert one.column()[:, 0].mean().item() == pytest.approx(0.5)
    assert one.losses(torch.zeros(4).long()).tolist() == [1.0, 0.0]


def test_a_limit_on_every_class_is_about_the_classes_that_are_there():
    trace = random_trace(200, c=4)
    rows = (trace.labels != 2).nonzero().squeeze(1)
    found = list_risks(trace, {"max_divergence": 0.3, "max_class_accuracy_drop": 0.1}, rows)
    assert [one.name for one in found] == ["max_divergence", *(f"max_class_accuracy_drop, class {c}" for c in (0, 1, 3))]
    assert torch.equal(found[-1].rows, trace.labels == 3)


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
