"""The batcher's thread: requests from many threads, room, closing, and what goes wrong."""

import queue
import threading
import time

import pytest
import torch

import exitlens as xl
from exitlens.serving.batcher import Batcher
from exitlens.serving.cascade import Terms, Ticket
from exitlens.serving.settings import Batching
from tests.serving.conftest import POLICIES


class Desk:
    """A batcher whose requests are waited for."""

    def __init__(self, model, batching=None, **hooks):
        self.model, self.done = model, queue.SimpleQueue()
        self.batcher = Batcher(model, batching or Batching(batch=4), self._deliver, **hooks)
        self.batcher.start()

    def _deliver(self, tickets):
        for ticket in tickets:
            ticket.receiver.set()

    def send(self, images, **terms):
        ticket = Ticket(self.model.check_tensors(images), Terms(**terms), self.model.info.num_classes, threading.Event())
        self.batcher.submit(ticket)
        return ticket


@pytest.fixture
def open_desk(model):
    """A function that opens a desk, which is closed after the test."""
    desks = []

    def open_(*args, **hooks):
        desks.append(Desk(model, *args, **hooks))
        return desks[-1]

    yield open_
    for desk in desks:
        desk.batcher.close()


def test_many_threads_get_their_own_answers(open_desk, model, images):
    desk, wrong = open_desk(), []
    expected = xl.predict(model.net, images, POLICIES["default"])

    def ask(i):
        for at in range(i, len(images), 8):
            ticket = desk.send(images[at : at + 1])
            assert ticket.receiver.wait(10)
            if (ticket.labels[0], ticket.exits[0]) != (expected.labels[at], expected.exits[at]):
                wrong.append(at)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert desk.batcher.waiting == 0


def hold(desk, monkeypatch):
    """Keeps the batcher inside a stage until the event is set."""
    go, engine = threading.Event(), desk.model.net.engine.select()
    advance = engine.advance
    monkeypatch.setattr(type(engine), "advance", lambda self, *args: go.wait(10) and advance(*args))
    return go


def test_room_is_limited_in_number(open_desk, images, monkeypatch):
    desk = open_desk(Batching(batch=4, max_waiting=5))
    go = hold(desk, monkeypatch)
    first = desk.send(images[:4], policy="full")
    with pytest.raises(xl.errors.RequestError, match="4 samples wait already") as error:
        desk.send(images[:2])
    assert error.value.status == 429
    assert error.value.retry_after >= 1
    go.set()
    assert first.receiver.wait(10)
    large = desk.send(images[:20])  # alone it may be larger
    assert large.receiver.wait(10)


def test_room_is_limited_in_time(open_desk, images, monkeypatch):
    desk = open_desk(Batching(batch=4, max_wait_ms=2000))
    desk.batcher.pace.observe_work(1, 1.0)
    go = hold(desk, monkeypatch)
    tickets = [desk.send(images[:1], policy="full") for _ in range(3)]
    with pytest.raises(xl.errors.RequestError, match="about 3 s of work"):
        desk.send(images[:1])
    go.set()
    assert all(ticket.receiver.wait(10) for ticket in tickets)


def test_closing_answers_what_was_taken_in(open_desk, images, monkeypatch):
    desk = open_desk()
    go = hold(desk, monkeypatch)
    tickets = [desk.send(images[i : i + 3], policy="full") for i in range(5)]
    closing = threading.Thread(target=desk.batcher.close)
    closing.start()
    while not desk.batcher._closing:
        time.sleep(0.001)
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        desk.send(images[:1])
    go.set()
    closing.join(10)
    assert all(ticket.receiver.is_set() and ticket.error is None for ticket in tickets)
    desk.batcher.close()  # twice is once


def test_a_request_that_is_being_read_keeps_it_open(open_desk, images):
    desk = open_desk()
    desk.batcher.expect()
    closing = threading.Thread(target=desk.batcher.close)
    closing.start()
    while desk.batcher.is_alive:
        time.sleep(0.001)
    with pytest.raises(xl.errors.RequestError) as error:
        desk.batcher.expect()
    assert error.value.status == 503
    assert desk.send(images[:1]).receiver.wait(10)
    assert closing.is_alive()
    desk.batcher.release()
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        desk.send(images[:1])


def test_idle_work_runs_when_nothing_waits(open_desk, images, monkeypatch):
    monkeypatch.setattr("exitlens.serving.batcher.PATIENCE", 0.01)
    left, seen = [3], []

    def idle(engine):
        seen.append(engine)
        left[0] -= 1
        return left[0] > 0

    desk = open_desk(idle=idle)
    desk.send(images[:1]).receiver.wait(10)
    until = time.monotonic() + 5
    while left[0] > 0 and time.monotonic() < until:
        time.sleep(0.005)
    assert left[0] <= 0


def test_a_network_that_cannot_run_raises_at_the_start(model, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(type(model.net.engine.select()), "answer", fail)
    with pytest.raises(RuntimeError, match="no such operator"):
        Desk(model)


def test_threads_of_its_own(open_desk, images):
    seen, before = [], torch.get_num_threads()
    desk = open_desk(Batching(threads=1), step=lambda *_: seen.append(torch.get_num_threads()))
    desk.send(images[:1]).receiver.wait(10)
    desk.batcher.close()
    assert seen[0] == 1
    assert before == torch.get_num_threads()


def test_a_batcher_that_breaks_ends_every_request_that_waits(open_desk, images, monkeypatch):
    desk = open_desk()
    go = hold(desk, monkeypatch)
    tickets = [desk.send(images[:1], policy="full")]
    time.sleep(0.05)  # it is inside a stage, the others wait at the door
    tickets += [desk.send(images[i : i + 1], policy="full") for i in range(3)]

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("exitlens.serving.cascade.Cascade._close", fail, raising=True)
    monkeypatch.setattr("exitlens.serving.cascade.Cascade.fail_all", lambda _: tickets[:1])
    go.set()
    assert all(ticket.receiver.wait(10) for ticket in tickets)
    assert all("it has stopped" in str(ticket.error) for ticket in tickets[1:])
    assert not desk.batcher.is_alive
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        desk.send(images[:1])


def test_hooks_may_fail(open_desk, images, caplog):
    def fail(*_):
        raise RuntimeError("no disk")

    desk = open_desk(step=fail, idle=fail)
    for i in range(3):
        assert desk.send(images[i : i + 1]).receiver.wait(10)
    assert desk.batcher.is_alive
    desk.batcher.close()
    assert "no disk" in caplog.text


def test_abandoned_requests_are_dropped(open_desk, images, monkeypatch):
    steps = []
    desk = open_desk(Batching(batch=4), step=lambda stage, count, _: steps.append((stage, count)))
    go = hold(desk, monkeypatch)
    ticket = desk.send(images[:4], policy="full")
    time.sleep(0.05)
    desk.batcher.abandon(ticket)
    go.set()
    assert ticket.receiver.wait(10)
    other = desk.send(images[:1])
    assert other.receiver.wait(10)
    assert desk.batcher.waiting == 0
    assert [stage for stage, count in steps if count == 4] == [0]
    desk.batcher.abandon(other)  # too late, and of no consequence
    assert desk.send(images[:1]).receiver.wait(10)
