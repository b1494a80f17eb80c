"""A request's own terms, answers as arrays, why each was given, and what is promised about it."""

import math
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.cascade import Answer, Terms, Ticket
from exitlens.serving.http.answers import (
    OUTPUTS,
    describe_terms,
    give_reason,
    name_promise,
    read_number,
    read_terms,
    shape_output,
)
from tests.serving.conftest import POLICIES
from tests.serving.test_cascade import make_ticket, run

DEEP = reduce(lambda inner, _: [inner], range(10_000), [])  # more lists in one another than repr can write


@pytest.mark.parametrize("value", [True, "x", "", "nan", "inf", [1], DEEP, {}, 10**400, "9" * 400, -1, 3, math.inf])
def test_numbers_that_are_refused(value):
    with pytest.raises(xl.errors.RequestError, match="max_cost: expected a number of 0 to 2, got"):
        read_number({"max_cost": value}, "max_cost", 2)


def test_numbers_from_text_and_json():
    assert [read_number({"n": value}, "n", math.inf) for value in (0, "1.5", 2, None)] == [0, 1.5, 2, None]
    assert read_number({}, "n", 1) is None


def test_terms(model):
    given = {"policy": "fast", "max_cost": str(model.cost[1]), "min_confidence": 0.5, "deadline_ms": "250"}
    assert read_terms(model, given, 10.0, True) == Terms("fast", 1, 0.5, 10.25, True)
    assert read_terms(model, {}, 10.0, False) == Terms()
    assert describe_terms(model, Terms(min_confidence=0.5))["promise"].startswith("none: ")
    for wrong, words in (
        ({"polcy": "fast"}, r"got 'polcy'.*Did you mean 'policy'"),
        ({"policy": "slow"}, "expected one of"),
        ({"policy": ["fast"]}, "expected one of"),
        ({"deadline_ms": 3.7e6}, "deadline_ms"),
    ):
        with pytest.raises(xl.errors.RequestError, match=words):
            read_terms(model, wrong, 0.0, False)


def test_every_output_has_the_shape_and_type_that_are_described(model, images):
    ticket = make_ticket(model, images[:6], attention=True)
    run(model, [ticket])
    kinds = {"INT64": "i", "FP32": "f", "BYTES": "O", "BOOL": "b"}
    for name, (kind, write) in OUTPUTS.items():
        array, shape = write(model, ticket), shape_output(model, name)
        assert array.dtype.kind == kinds[kind], name
        assert len(array) == 6
        assert all(wanted in (-1, size) for wanted, size in zip(shape, array.shape, strict=True)), name
    assert OUTPUTS["class"].write(model, ticket).tolist() == [model.info.classes[i] for i in ticket.labels]
    assert np.allclose(OUTPUTS["cost"].write(model, ticket), [model.cost[k] for k in ticket.exits])


def test_maps_of_different_sizes_are_padded_and_their_sizes_told(model):
    ticket = Ticket((torch.zeros(2, 3, 16, 16),), Terms(attention=True), model)
    ticket.maps = [torch.ones(1, 2), torch.ones(3, 1)]
    assert OUTPUTS["attention"].write(model, ticket).tolist() == [[[1, 1], [0, 0], [0, 0]], [[1, 0], [1, 0], [1, 0]]]
    assert OUTPUTS["attention_shape"].write(model, ticket).tolist() == [[1, 2], [3, 1]]


def test_reasons(model):
    def tell(exit_, score, limited=False, trust=-1.0, refused=-1, model=model, **terms):
        ticket = Ticket((torch.zeros(1, 3, 16, 16),), Terms(**terms), model)
        threshold = (*model.policies["default"].thresholds, math.inf)[exit_]
        ticket.answer(0, Answer(exit_, 0, score, np.zeros(4, np.float32), None, trust, refused, threshold))
        ticket.limited[0] = limited
        return give_reason(model, ticket, 0)

    assert tell(0, 0.9) == "max probability 0.900 >= 0.800"
    assert tell(0, 0.95, min_confidence=0.93) == "max probability 0.950 >= 0.930"
    assert tell(2, 0.4).startswith("no earlier exit was sure enough")
    assert "max_cost" in tell(1, 0.4, True, last_exit=1)
    assert "deadline_ms" in tell(0, 0.4, True, last_exit=1, deadline=3.0)
    policy = replace(POLICIES["default"], gate=xl.types.Gate(((0.0,) * 5,) * 2))
    binding = xl.types.BindingCertificate(
        0.2, 0.1, 0.9, 0.95, 50, None, ((20, 0.9), (20, 1.0), (10, None)), policy.rule_hash(), 0.2, 50
    )
    gated = replace(model, policies={"default": replace(policy, binding=binding)})
    agrees = "trust of the gate 0.850 >= 0.800; max probability 0.500"
    assert tell(0, 0.5, trust=0.85, model=gated) == f"{agrees}. {binding.describe(0)}"
    assert tell(0, 0.5, trust=0.85, model=gated, min_confidence=0.1) == agrees  # nothing was promised of other terms
    adaptive = replace(model, adaptive=xl.Adaptive(POLICIES["default"], 0.1))
    assert tell(2, 0.4, model=adaptive).startswith("no earlier exit was sure enough, or its answer was to be checked")
    assert tell(2, 0.4, model=adaptive, min_confidence=0.1).startswith("no earlier exit was sure enough; ")
    stayed = "exit 0 was sure enough, but the gate refused its answer; max probability 0.400. The top 20 %"
    assert tell(2, 0.4, trust=1.0, refused=0, model=gated).startswith(stayed)


def test_what_a_gate_refused_is_told(model, images):
    support = xl.collect(model.net, images).gate_features[:, :, 0].median(0).values
    weights = tuple((0.0, 1.0, 0.0, 0.0, -level) for level in support.tolist())  # half of the answers have less
    policy = xl.Policy((0.5, 0.5), gate=xl.types.Gate(weights, (0.0, 0.0)))
    gated = replace(model, policies={"default": policy})
    ticket, pred = make_ticket(gated, images), xl.predict(model.net, images, policy)
    run(gated, [ticket])
    assert {-1, 0} <= set(pred.refused.tolist())
    assert OUTPUTS["refused"].write(gated, ticket).tolist() == pred.refused.tolist()
    assert np.allclose(OUTPUTS["trust"].write(gated, ticket), pred.trust, atol=1e-5)


def test_thresholds_that_adapt_promise_something_of_requests_without_terms(model):
    adaptive = xl.Adaptive(POLICIES["default"], 0.1)
    adapting = replace(model, adaptive=adaptive)
    assert describe_terms(adapting, Terms())["promise"] == "adaptive"
    assert describe_terms(adapting, Terms(last_exit=1))["promise"].startswith("none: ")
    adapting = replace(model, adaptive=xl.Adaptive(POLICIES["default"], 0.1, act=False))
    assert describe_terms(adapting, Terms())["promise"].startswith("none: thresholds were set by hand")


def test_promises():
    by_hand = POLICIES["default"]
    assert name_promise(by_hand, Terms()) == "none: thresholds were set by hand"
    for terms, word in (
        (Terms(last_exit=1, deadline=1.0), "max_cost"),
        (Terms(min_confidence=0.5), "min_confidence"),
        (Terms(deadline=1.0), "deadline_ms"),
    ):
        assert name_promise(by_hand, terms) == f"none: the policy's own was made without {word}"
    assert name_promise(xl.Policy.never(3), Terms(deadline=math.inf)).startswith("none")
    record = xl.types.Calibration(xl.CalibrationRequest(max_cost=1.0), 10, rule=by_hand.rule_hash())
    calibrated = replace(by_hand, calibration=record)
    assert name_promise(calibrated, Terms()) == "calibrated"
    changed = replace(calibrated, thresholds=(0.1, 0.1))
    assert name_promise(changed, Terms()) == "none: the policy was changed since it was calibrated"
