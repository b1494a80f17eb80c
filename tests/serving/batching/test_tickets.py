"""One request on its way."""

import math

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.batching.tickets import Terms, Ticket


def make(count=2, **terms):
    return Ticket((torch.zeros(count, 3),), Terms(**terms), 2)


P = np.array([0.25, 0.75], np.float32)


@pytest.mark.parametrize("terms", [{"last_exit": 0}, {"min_confidence": 0.1}, {"deadline": 1.0}])
def test_terms_that_change_the_policy(terms):
    assert Terms(**terms).changes_policy
    assert not Terms(policy="fast", attention=True).changes_policy


def test_answers_arrive_one_by_one():
    ticket = make()
    assert (len(ticket), ticket.left, ticket.is_new) == (2, 2, True)
    ticket.first = 0
    assert not ticket.is_new
    ticket.answer(1, 2, 1, 0.75, P, None)
    assert ticket.left == 1
    assert ticket.exits.tolist() == [-1, 2]


def test_kept_answers_stand_in_where_all_have_one():
    ticket = make()
    ticket.answer(0, 1, 1, 0.75, P, None)
    assert not ticket.answer_by_kept()
    ticket.kept[1] = (0, 1, 0.75, P, None)
    assert ticket.answer_by_kept()
    assert ticket.left == 0
    assert (ticket.exits.tolist(), ticket.limited.tolist()) == ([1, 0], [False, True])


def test_answers_that_are_not_finite_fail():
    ticket = make(1)
    ticket.answer(0, 1, 1, 0.75, P, None)
    ticket.check_finite()
    assert ticket.error is None
    ticket.probabilities[0, 0] = math.nan
    ticket.check_finite()
    assert isinstance(ticket.error, xl.RequestError)
    assert ticket.error.status == 422
    own = make(1)
    own.fail(ValueError("first"))
    own.check_finite()
    assert str(own.error) == "first"
    assert not own.is_new
