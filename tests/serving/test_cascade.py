"""Samples of many requests in one router: each is answered as predict would, and within its own terms."""

import math
import time

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.cascade import Answer, Cascade, Pace, Pool, Terms, Ticket, choose_pool
from tests.serving.conftest import POLICIES


@pytest.fixture
def open_cascade(model):
    """A function that makes a cascade and takes requests into it."""
    with model.open_engine() as engine:

        def open_(*tickets, size=4, pace=None):
            cascade = Cascade(model, engine, pace or Pace(), size, math.inf)
            for ticket in tickets:
                cascade.admit(ticket)
            return cascade

        yield open_


def drain(cascade):
    done = []
    while not cascade.is_empty:
        done += cascade.advance()
    return done


def run(model, tickets, size=4):
    """Run all tickets through one cascade; return its steps, and the requests in the order in which they ended."""
    steps = []
    with model.open_engine() as engine:
        cascade = Cascade(model, engine, Pace(), size, math.inf, lambda *step: steps.append(step[:2]))
        for ticket in tickets:
            cascade.admit(ticket)
        return steps, drain(cascade)


def make_ticket(model, images, **terms):
    return Ticket(model.check_tensors(images), Terms(**terms), model)


@pytest.mark.parametrize("size", [1, 4, 32])
def test_requests_are_answered_as_predict_does(model, images, size):
    parts = [(images[:1], "default"), (images[1:8], "default"), (images[8:9], "fast"), (images[9:20], "full")]
    tickets = [make_ticket(model, x, policy=name, attention=name != "full") for x, name in parts]
    _, done = run(model, tickets, size)
    assert set(done) == set(tickets)
    for (x, name), ticket in zip(parts, tickets, strict=True):
        pred = xl.predict(model.net, x, POLICIES[name], attention=True)
        assert ticket.error is None
        assert not ticket.limited.any()
        assert ticket.labels.tolist() == pred.labels.tolist()
        assert ticket.exits.tolist() == pred.exits.tolist()
        assert np.allclose(ticket.confidence, pred.confidence, atol=1e-6)
        assert np.allclose(ticket.probabilities, pred.probabilities, atol=1e-6)
        pairs = zip(ticket.maps, pred.attention, strict=True) if ticket.maps else []
        assert all(torch.allclose(*pair, atol=1e-6) for pair in pairs)


def test_early_exits_do_not_wait_for_deep_ones(model, images):
    exits = xl.predict(model.net, images, POLICIES["default"]).exits.tolist()
    early, deep = exits.index(0), exits.index(2)
    tickets = [make_ticket(model, images[i : i + 1]) for i in (deep, early)]
    steps, done = run(model, tickets)
    assert done == tickets[::-1]
    assert steps == [(0, 2), (1, 1), (2, 1)]


def test_max_cost_sets_the_last_exit(model, images):
    assert [model.find_last_exit(cost) for cost in (model.cost[0], model.cost[1] + 1e-6, 9)] == [0, 1, 2]
    with pytest.raises(xl.errors.RequestError, match=r"max_cost: expected .* or more"):
        model.find_last_exit(model.cost[0] / 2)
    ticket = make_ticket(model, images, policy="full", last_exit=1)
    run(model, [ticket])
    assert set(ticket.exits.tolist()) == {1}
    assert ticket.limited.all()


def test_more_confidence_than_the_policy_asks_for(model, images):
    ticket = make_ticket(model, images, min_confidence=0.9)
    run(model, [ticket])
    default, higher = (xl.predict(model.net, images, policy) for policy in (POLICIES["default"], xl.Policy((0.9, 0.9))))
    assert ticket.exits.tolist() == higher.exits.tolist() != default.exits.tolist()
    assert not ticket.limited.any()


def test_deadlines(model, images):
    soon = make_ticket(model, images[:3], policy="full", deadline=time.monotonic() + 30)
    past = make_ticket(model, images[:2], policy="full", deadline=time.monotonic() - 1)
    _, done = run(model, [soon, past])
    assert done[0] is past
    assert past.error.status == 504
    assert soon.exits.tolist() == [2, 2, 2]
    assert not soon.limited.any()


def test_the_best_answer_so_far_goes_out_when_time_runs_out(model, images, open_cascade, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("exitlens.serving.cascade.time.monotonic", lambda: now[0])
    ticket = make_ticket(model, images[:3], policy="full", deadline=1.0, attention=True)
    other = make_ticket(model, images[3:4], policy="full")
    cascade = open_cascade(ticket, other)
    assert cascade.advance() == []  # stage 0
    now[0] = 0.9999
    assert cascade.advance() == [ticket]
    assert drain(cascade) == [other]
    assert ticket.exits.tolist() == [0, 0, 0]
    assert ticket.limited.all()
    assert None not in ticket.maps
    assert other.exits.tolist() == [2]


def test_exits_answer_when_the_next_stage_would_come_too_late(model, images, open_cascade):
    pace = Pace()
    pace.observe(1, 1, 60.0)
    ticket = make_ticket(model, images[:1], policy="full", deadline=time.monotonic() + 30)
    assert open_cascade(ticket, pace=pace).advance() == [ticket]
    assert ticket.exits.tolist() == [0]
    assert ticket.limited.all()


@pytest.mark.parametrize("size", [1, 4])
def test_the_first_answers_of_a_burst_do_not_seem_to_have_cost_all_work(model, images, open_cascade, monkeypatch, size):
    now, pace = [0.0], Pace()
    monkeypatch.setattr("exitlens.serving.cascade.time.monotonic", lambda: now[0])
    stages = np.diff([0.0, *model.cost]) / model.cost[-1]  # seconds of a sample there: one for all of them
    cascade = open_cascade(make_ticket(model, images, policy="full"), size=size, pace=pace)
    (router,) = cascade._routers.values()
    run_stage = router.run_stage

    def take_time(k):
        before = router.list_waiting()[k][0]
        routed = run_stage(k)
        now[0] += stages[k] * (before - router.list_waiting()[k][0])
        return routed

    monkeypatch.setattr(router, "run_stage", take_time)
    while not cascade.is_empty:
        cascade.advance()
        assert pace.seconds_each == pytest.approx(1.0)


def test_a_stage_that_raises_ends_its_samples_alone(model, images, open_cascade, monkeypatch):
    tickets = [make_ticket(model, images[:2], policy=name) for name in ("full", "fast")]
    cascade = open_cascade(*tickets)
    monkeypatch.setattr(cascade.engine, "run_stage", fail)
    assert set(cascade.advance() + cascade.advance()) == set(tickets)
    assert tickets[0].error.status == 500
    assert tickets[1].exits.tolist() == [0, 0]


def fail(*_):
    raise MemoryError


def test_samples_that_left_before_a_stage_failed_are_answered(model, images, open_cascade, monkeypatch):
    exits = xl.predict(model.net, images, POLICIES["default"]).exits.tolist()
    early, deep = (make_ticket(model, images[i : i + 1]) for i in (exits.index(0), exits.index(2)))
    cascade = open_cascade(early, deep)
    with monkeypatch.context() as patch:  # samples that stay find no memory
        patch.setattr("exitlens.model.engine.router.gather", fail)
        assert set(cascade.advance()) == {early, deep}
    assert (early.error, early.exits.tolist()) == (None, [0])
    assert deep.error.status == 500
    again = make_ticket(model, images[:8])
    cascade.admit(again)
    drain(cascade)
    assert again.exits.tolist() == exits[:8]


def test_a_stage_that_was_emptied_waits_for_company_anew(model, images, open_cascade):
    deep = xl.predict(model.net, images, POLICIES["default"]).exits.tolist().index(2)
    ticket = make_ticket(model, images[deep : deep + 1])
    cascade = open_cascade(ticket)
    assert not cascade.advance()
    (router,) = cascade._routers.values()
    assert [since < math.inf for _, since in router.list_waiting()] == [False, True, False]
    cascade.abandon(ticket)
    assert router.list_waiting() == [(0, math.inf)] * 3
    assert not cascade.is_empty  # until its end is told
    assert cascade.advance() == [ticket]
    assert cascade.is_empty


def test_kept_answers_stand_in_where_all_have_one(model):
    ticket, row = Ticket((torch.zeros(2, 3),), Terms(), model), np.array([0.25, 0.75, 0, 0], np.float32)
    ticket.answer(0, Answer(1, 1, 0.75, row, None, -1.0))
    assert not ticket.answer_by_kept()
    ticket.kept[1] = Answer(0, 1, 0.75, row, None, -1.0)
    assert ticket.answer_by_kept()
    assert ticket.left == 0
    assert (ticket.exits.tolist(), ticket.limited.tolist()) == ([1, 0], [False, True])


def test_answers_that_are_not_finite_end_their_request_alone(model, images):
    bad, good = make_ticket(model, images[:2]), make_ticket(model, images[2:4])
    bad.activations = (torch.full_like(bad.activations[0], math.nan),)
    run(model, [bad, good])
    assert good.error is None
    assert isinstance(bad.error, xl.errors.RequestError)
    assert bad.error.status == 422


OWN, LIMITED = ("default", False), ("default", True)
ARRIVALS, MIDDLE, DEEP = Pool(OWN, 0, 40, 9.0), Pool(OWN, 1, 5, 9.9), Pool(OWN, 2, 3, 9.8)
URGENT = Pool(LIMITED, 0, 1, 9.99, True), Pool(LIMITED, 1, 1, 9.99, True)


@pytest.mark.parametrize(
    ("pools", "size", "max_delay", "expected"),
    [
        pytest.param((), 50, 0.5, ARRIVALS, id="arrivals first, so that others find company"),
        pytest.param((), 4, 0.5, MIDDLE, id="a whole micro-batch"),
        pytest.param((), 3, 0.5, DEEP, id="the deepest whole micro-batch"),
        pytest.param((), 30, 0.5, ARRIVALS, id="a whole micro-batch of arrivals"),
        pytest.param((), 30, 0.15, DEEP, id="overdue; arrivals do not wait for company"),
        pytest.param((), 30, 0.05, DEEP, id="the longest overdue"),
        pytest.param(URGENT, 3, 0.05, URGENT[1], id="the deepest with a deadline"),
    ],
)
def test_which_stage_runs_next(pools, size, max_delay, expected):
    assert choose_pool([ARRIVALS, *pools, MIDDLE, DEEP], size, 10.0, max_delay) == expected


def test_the_pace_is_learnt():
    pace = Pace()
    assert (pace.forecast(0, 1), pace.forecast_longest(), pace.seconds_each) == (0.0, 0.0, 0.0)
    pace.observe(0, 1, 1.0)
    pace.observe(0, 16, 4.0)
    pace.observe(1, 1, 7.0)
    assert [pace.forecast(0, n) for n in (1, 2, 8, 16, 31, 500)] == [1.0, 1.0, 4.0, 4.0, 4.0, 4.0]
    pace.observe(0, 1, 2.0)
    assert pace.forecast(0, 1) == pytest.approx(1.1)
    assert pace.forecast_longest() == 7.0
    pace.observe_work(4, 2.0)
    assert pace.seconds_each == 0.5
    for _ in range(1000):
        pace.observe_work(2, 4.0)
    assert pace.seconds_each == pytest.approx(2.0)
    mixed = Pace()
    for _ in range(30):
        mixed.observe_work(16, 1.0)  # those that leave early, and the few that need the rest of the network
        mixed.observe_work(4, 9.0)
    assert mixed.seconds_each == pytest.approx(0.5, rel=0.1)  # of all, not of the last step
