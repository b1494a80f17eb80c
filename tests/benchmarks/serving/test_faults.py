"""What is made of trials in which something went wrong, and the requests that are meant to."""

from __future__ import annotations

import os
import socket
import threading
import time

import numpy as np
import pytest

import benchmarks.serving.hostile as hostile
from benchmarks.serving.answers import Answer, Expected, compare, cut, find_length
from benchmarks.serving.attacks.catalogue import list_kinds, make_hostile
from benchmarks.serving.attacks.making import INFER, Hostile, make_good
from benchmarks.serving.faults import count_status, count_wrong, part_by_signal
from benchmarks.serving.load.beside import Poll
from benchmarks.serving.load.trials import Trial
from benchmarks.serving.overload import describe_part, find_recovery

NAN = float("nan")


def make_trial(rows, answers=()):
    """Of (scheduled, sent, finished, status)."""
    scheduled, sent, finished, status = (np.array(column, float) for column in zip(*rows, strict=True))
    count = len(rows)
    return Trial(
        scheduled, sent, finished, status.astype(np.int16), np.zeros(count, np.int16), np.arange(count), answers=answers
    )


def expect(labels, exits, near=()):
    found = np.zeros(len(labels), bool)
    found[list(near)] = True
    return Expected(np.array(labels), np.array(exits), np.full(len(labels), 0.5), found)


def answer(version, labels, exits, score=0.5):
    return Answer(version, np.array(labels), np.array(exits), np.full(len(labels), score))


def test_hostile_requests_are_of_all_kinds_and_always_the_same():
    kinds = list_kinds()
    assert len(kinds) >= 30
    made = list(make_hostile(len(kinds), (3, 8, 8), seed=1))
    assert {one.kind for one in made} == {*kinds}
    assert made == list(make_hostile(len(kinds), (3, 8, 8), seed=1))
    assert made != list(make_hostile(len(kinds), (3, 8, 8), seed=2))
    assert all(one.parts and all(one.parts) for one in made)
    assert make_good((3, 8, 8)).startswith(f"POST {INFER} ".encode())


def test_the_time_to_recover():
    calm = [(t, t, t + 0.01, 200) for t in np.arange(0, 2, 0.1)]
    assert find_recovery(make_trial(calm), 1.0, 0.1) == 0.0
    late = [(t, t, t + (0.5 if 1.0 <= t < 1.35 else 0.01), 200) for t in np.arange(0, 2, 0.1)]
    assert find_recovery(make_trial(late), 1.0, 0.1) == pytest.approx(0.3)
    refused = [(t, t, t + 0.01, 429 if 1.0 <= t < 1.55 else 200) for t in np.arange(0, 2, 0.1)]
    assert find_recovery(make_trial(refused), 1.0, 0.1) == pytest.approx(0.5)
    assert find_recovery(make_trial([*calm, (2.0, NAN, NAN, 0)]), 1.0, 0.1) is None
    assert find_recovery(make_trial(calm), 5.0, 0.1) is None


def test_a_part_of_an_overload():
    rows = [(0.5, 0.5, 9.0, 200), (1.0, 1.0, 1.2, 200), (1.5, 1.5, 1.6, 429), (1.6, 1.6, 1.9, 503), (1.7, NAN, NAN, 0)]
    found = describe_part(make_trial(rows), 1.0, 2.0)
    assert found["status"] == {"0": 1, "200": 1, "429": 1, "503": 1}
    assert found["accepted_p99_ms"] == pytest.approx(200)
    assert found["refused_p99_ms"] == pytest.approx(300)
    assert (found["requests"], found["others"], found["answers_a_second"]) == (4, 1, 1.0)
    assert describe_part(make_trial(rows), 3.0, 4.0)["accepted_p99_ms"] is None


def test_what_was_sent_before_a_signal_is_lost_and_what_came_later_is_not():
    rows = [
        (0, 0, 1, 200),
        (0, 0, 1, 0),
        (0, 0.1, 1, 500),
        (0, 2.1, 3, 200),
        (0, 2.1, 3, 0),
        (0, 2.1, 3, 503),
        (0, NAN, NAN, 0),
    ]
    found = part_by_signal(make_trial(rows), 2.0)
    expected = {"sent_before": 3, "lost": 2, "answered_after": 1, "closed_after": 1, "refused_after": 1, "unsent": 1}
    assert found == expected
    assert count_status([200, 0, 200]) == {"0": 1, "200": 2}


def test_answers_are_held_against_the_version_that_they_name():
    answers = [answer("a", [1], [0]), answer("b", [1], [0]), answer("c", [1], [0]), None, answer("a", [0], [1])]
    trial = make_trial([(0, 0, 1, 200)] * 5, answers)
    one, other = expect([1] * 5, [0] * 5), expect([1] * 5, [2] * 5)
    assert count_wrong(trial, {"a": one, "b": other}) == 3  # b, the unknown version, and the last
    assert count_wrong(trial, {"": one}) == 1
    assert count_wrong(trial, {"": expect([1] * 5, [0] * 5, near=[4])}) == 0


def test_requests_of_several_samples_are_compared():
    trial = make_trial([(0, 0, 1, 200)] * 3, [answer("a", [1, 2], [0, 0]), answer("a", [1, 2], [0, 1], 0.75), None])
    wanted = [expect([1, 2], [0, 0]), expect([1, 2], [0, 0], near=[1]), expect([1], [0])]
    found = compare(trial, wanted)
    assert found == {
        "requests": 3, "unanswered": 1, "samples": 4, "differing": 1, "differing_near": 1, "score_gap": 0.25,
    }  # fmt: skip
    rows = list(cut(50, np.random.default_rng(0)))
    assert [i for row in rows for i in range(50)[row]] == list(range(50))
    assert {row.stop - row.start for row in rows} == {1, 2, 3, 4}
    assert find_length(b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 12\r\nA: b") == 12
    assert find_length(b"HTTP/1.1 200 OK") is None


def serve_once(said):
    """Takes one connection: says so much after the first bytes, and closes; ``None``: says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work():
        client, _ = listener.accept()
        client.recv(1 << 16)
        if said is None:
            time.sleep(0.5)
        else:
            client.sendall(said)
        client.close()
        listener.close()

    threading.Thread(target=work, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("said", "outcome", "has_reason"),
    [
        (b'HTTP/1.1 400 Bad\r\nContent-Length: 32\r\n\r\n{"error": "this is no good PNG"}', "400", True),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", "500", False),
        (b"", "closed", False),
        (None, "hangs", False),
    ],
)
def test_what_comes_of_a_hostile_request(monkeypatch, said, outcome, has_reason):
    monkeypatch.setattr(hostile, "PATIENCE", 0.2)
    found = hostile.send(serve_once(said), Hostile("pickle", (b"a", b"b"), pause=0.01, closes=True))
    assert (found.outcome, found.has_reason) == (outcome, has_reason)
    summary = hostile.describe_replies([found])
    assert summary["by_outcome"] == {outcome: 1}
    assert summary["by_kind"]["pickle"] == {outcome: 1}
    assert summary["kinds_with_5xx"] == (["pickle"] if outcome == "500" else [])
    assert summary["kinds_that_hang"] == (["pickle"] if outcome == "hangs" else [])


def test_a_poll_counts_answers_and_errors():
    answers = iter([200, 200, ConnectionRefusedError(), 503])

    def ask():
        found = next(answers, 200)
        if isinstance(found, OSError):
            raise found
        return found

    with Poll(ask, 0.005) as poll:
        while len(poll.found) < 4:
            os.sched_yield()
    assert poll.count() | {"200": 0} == {"200": 0, "503": 1, "ConnectionRefusedError": 1}
