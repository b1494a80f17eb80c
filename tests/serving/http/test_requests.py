"""A request's own terms, from an address, a form or JSON."""

import math
import threading

import pytest

import exitlens as xl
from exitlens.serving.batching.tickets import Terms
from exitlens.serving.http.requests import Service, describe_terms, read_number, read_terms
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits
from tests.serving.http.conftest import run


@pytest.mark.parametrize("value", [True, "x", "", "nan", "inf", [1], {}, 10**400, "9" * 400, -1, 3, math.inf])
def test_numbers_that_are_refused(value):
    with pytest.raises(xl.RequestError, match="max_cost: expected a number of 0 to 2, got"):
        read_number({"max_cost": value}, "max_cost", 0, 2)


def test_numbers_from_text_and_json():
    assert [read_number({"n": one}, "n", 0, math.inf) for one in (0, "1.5", 2, None)] == [0, 1.5, 2, None]
    assert read_number({}, "n", 0, 1) is None


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
        with pytest.raises(xl.RequestError, match=words):
            read_terms(model, wrong, 0.0, False)


def test_samples_are_counted_and_work_runs_aside(model):
    repository = Repository({}, models={"tiny": model})
    service = Service(repository, Limits(max_batch=3))
    try:
        service.check_count(3)
        for count, status in ((0, 400), (4, 413)):
            with pytest.raises(xl.RequestError) as error:
                service.check_count(count)
            assert error.value.status == status
        assert run(service.run_aside(threading.current_thread)) is not threading.current_thread()
    finally:
        service.threads.shutdown()
        repository.close()


@pytest.mark.parametrize("body", ['{"text": "a", "max_cost": [1]}', '{"text": "a", "max_cost": 1' + "0" * 400 + "}"])
def test_a_term_of_the_wrong_type_is_the_clients_mistake(client, body):
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "max_cost" in answer.json()["error"]
