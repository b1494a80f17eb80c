"""The thread of a model: requests from an event loop, room, closing, what goes wrong, and the watch on its answers."""

import asyncio
import threading
from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.cascade import Terms
from exitlens.serving.endpoint import Endpoint, Watch
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import adapt, wrap_network
from exitlens.serving.settings import Adapting, Batching, Watching
from tests.serving.conftest import POLICIES, wait_until
from tests.serving.test_cascade import make_ticket, run
from tests.serving.test_metrics import read


@pytest.fixture(scope="module")
def loop():
    """An event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def open_endpoint(model):
    """A function that opens an endpoint, which is closed after the test."""
    endpoints = []

    def open_(batching=None, watching=None):
        endpoints.append(Endpoint(model, batching or Batching(batch=4), watching or Watching(), Metrics()))
        return endpoints[-1]

    yield open_
    for endpoint in endpoints:
        endpoint.close()


@pytest.fixture
def send(loop):
    """A function that sends a request from the loop, and returns a future of the ticket."""

    def send_(endpoint, images, **terms):
        answer = endpoint.answer(endpoint.model.check_tensors(images), Terms(**terms))
        return asyncio.run_coroutine_threadsafe(answer, loop)

    return send_


@pytest.fixture
def hold(model, monkeypatch):
    """A function that keeps the thread inside a stage; it returns events: the thread is inside, and it may go on."""

    def hold_():
        inside, go, engine = threading.Event(), threading.Event(), model.net.engine.select()
        run_stage = engine.run_stage

        def wait_and_run(_, *args):
            inside.set()
            assert go.wait(10)
            return run_stage(*args)

        monkeypatch.setattr(type(engine), "run_stage", wait_and_run)
        return inside, go

    return hold_


def test_many_requests_at_once_get_their_own_answers(open_endpoint, send, images):
    endpoint = open_endpoint()
    expected = xl.predict(endpoint.model.net, images, POLICIES["default"])
    tickets = [future.result(10) for future in [send(endpoint, image[None]) for image in images]]
    assert [(ticket.labels[0], ticket.exits[0]) for ticket in tickets] == list(
        zip(expected.labels.tolist(), expected.exits.tolist(), strict=True)
    )
    assert endpoint.waiting == 0
    wait_until(lambda: read(endpoint.metrics)["exitlens_waiting_samples", ("model", "tiny")] == 0)


def test_room_is_limited_in_number(open_endpoint, send, images, hold):
    endpoint = open_endpoint(Batching(batch=4, max_waiting=5))
    _, go = hold()
    first = send(endpoint, images[:4], policy="full")
    with pytest.raises(xl.errors.RequestError, match="4 samples wait already") as error:
        send(endpoint, images[:2]).result(10)
    assert error.value.status == 429
    assert error.value.retry_after >= 1
    go.set()
    first.result(10)
    assert len(send(endpoint, images[:20]).result(10)) == 20  # alone it may be larger


def test_room_is_limited_in_time(open_endpoint, send, images, hold):
    endpoint = open_endpoint(Batching(batch=4, max_wait_ms=2000))
    endpoint.pace.observe_work(1, 1.0)
    _, go = hold()
    futures = [send(endpoint, images[:1], policy="full") for _ in range(3)]
    with pytest.raises(xl.errors.RequestError, match="about 3 s of work"):
        send(endpoint, images[:1]).result(10)
    go.set()
    assert not wait(futures, 10).not_done


def test_closing_answers_what_was_taken_in(open_endpoint, send, images, hold):
    endpoint = open_endpoint()
    _, go = hold()
    futures = [send(endpoint, images[i : i + 3], policy="full") for i in range(5)]
    wait_until(lambda: endpoint.waiting == 15)
    closing = threading.Thread(target=endpoint.close)
    closing.start()
    wait_until(lambda: not endpoint.is_alive)
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        send(endpoint, images[:1]).result(10)
    go.set()
    closing.join(10)
    assert [future.result(1).exits.tolist() for future in futures] == [[2, 2, 2]] * 5
    endpoint.close()  # twice is once


def test_a_request_that_is_being_read_keeps_it_open(open_endpoint, send, images):
    endpoint = open_endpoint()
    endpoint.expect()
    closing = threading.Thread(target=endpoint.close)
    closing.start()
    wait_until(lambda: not endpoint.is_alive)
    with pytest.raises(xl.errors.RequestError) as error:
        endpoint.expect()
    assert error.value.status == 503
    send(endpoint, images[:1]).result(10)
    assert closing.is_alive()
    endpoint.release()
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        send(endpoint, images[:1]).result(10)


def test_the_shadow_runs_when_nothing_waits(open_endpoint, send, images, monkeypatch):
    monkeypatch.setattr("exitlens.serving.endpoint.PATIENCE", 0.01)
    endpoint = open_endpoint(watching=Watching(shadow=1.0))
    send(endpoint, images[:3]).result(10)
    compared = "exitlens_shadow_answers_total"
    wait_until(lambda: sum(n for key, n in read(endpoint.metrics).items() if key[0] == compared) == 3)


def test_a_network_that_cannot_run_raises_at_the_start(open_endpoint, model, monkeypatch):
    monkeypatch.setattr(type(model.net.engine.select()), "run_exit", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        open_endpoint()


def test_threads_of_its_own(open_endpoint, send, images, monkeypatch):
    seen, before = [], torch.get_num_threads()
    endpoint = open_endpoint(Batching(threads=1))
    monkeypatch.setattr(endpoint.metrics, "observe_step", lambda *_: seen.append(torch.get_num_threads()))
    send(endpoint, images[:1]).result(10)
    assert seen[0] == 1
    assert before == torch.get_num_threads()


def test_a_thread_that_breaks_ends_every_request_that_waits(open_endpoint, send, images, hold, monkeypatch):
    endpoint, (inside, go) = open_endpoint(), hold()
    futures = [send(endpoint, images[:1], policy="full")]
    assert inside.wait(10)
    futures += [send(endpoint, images[i : i + 1], policy="full") for i in range(3)]  # they wait at the door
    wait_until(lambda: endpoint.waiting == 4)
    monkeypatch.setattr(endpoint.pace, "observe_work", fail)
    go.set()
    for future in futures:
        with pytest.raises(xl.errors.RequestError, match="it has stopped"):
            future.result(10)
    assert not endpoint.is_alive
    with pytest.raises(xl.errors.RequestError, match="shutting down"):
        send(endpoint, images[:1]).result(10)


def fail(*_):
    raise RuntimeError("no disk")


def test_counting_and_watching_may_fail(open_endpoint, send, images, monkeypatch, caplog):
    monkeypatch.setattr("exitlens.serving.endpoint.PATIENCE", 0.001)
    endpoint = open_endpoint()
    for owner, name in ((endpoint.metrics, "observe_step"), (endpoint.watch, "see"), (endpoint.watch, "run_idle")):
        monkeypatch.setattr(owner, name, fail)
    for i in range(3):
        send(endpoint, images[i : i + 1]).result(10)
    wait_until(lambda: "run_idle" in caplog.text)
    assert endpoint.is_alive
    assert "no disk" in caplog.text


def test_a_request_that_is_given_up_costs_no_further_stage(open_endpoint, send, images, hold, monkeypatch):
    endpoint, steps = open_endpoint(), []
    monkeypatch.setattr(endpoint.metrics, "observe_step", lambda _, *step: steps.append(step[:2]))
    inside, go = hold()
    given_up = send(endpoint, images[:4], policy="full")
    assert inside.wait(10)
    given_up.cancel()
    other = send(endpoint, images[:1])
    wait_until(lambda: endpoint.waiting == 5)
    go.set()
    assert other.result(10).error is None
    wait_until(lambda: endpoint.waiting == 0)
    assert [stage for stage, count in steps if count == 4] == [0]


def test_a_loop_that_is_closed_does_not_end_the_others_answers(open_endpoint, send, images, hold):
    endpoint, (inside, go) = open_endpoint(), hold()
    gone = asyncio.new_event_loop()
    task = gone.create_task(endpoint.answer(endpoint.model.check_tensors(images[:1]), Terms(policy="full")))
    gone.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False
    gone.close()
    assert inside.wait(10)
    other = send(endpoint, images[:2], policy="full")
    go.set()
    assert other.result(10).exits.tolist() == [2, 2]
    assert endpoint.is_alive


@pytest.fixture
def calibrated(model):
    """Return the tiny network with a policy that was calibrated on samples."""
    rng = torch.Generator().manual_seed(5)
    images, labels = torch.randn(400, 3, 16, 16, generator=rng), torch.randint(4, (400,), generator=rng)
    trace = xl.collect(model.net, list(zip(images.split(50), labels.split(50), strict=True)))
    return wrap_network("tiny", model.net, {"default": xl.calibrate(trace, max_cost=0.9)})


def watch_answers(model, watch, images):
    """Send images through the cascade, one in a request, watched like a server's."""
    tickets = [make_ticket(model, image[None]) for image in images]
    for ticket in tickets:
        watch.expect(ticket)
    for ticket in run(model, tickets)[1]:
        watch.see([ticket])


def test_drifting_samples_are_noticed(calibrated):
    rng, metrics = torch.Generator().manual_seed(6), Metrics()
    watch = Watch(calibrated, metrics, Watching(drift_rate=1e6))
    watch_answers(calibrated, watch, torch.randn(300, 3, 16, 16, generator=rng))
    assert not watch.is_drifting
    assert watch.monitor.state().samples == 300
    watch_answers(calibrated, watch, 6 * torch.randn(600, 3, 16, 16, generator=rng))
    assert watch.is_drifting
    assert read(metrics)["exitlens_drift_alarm", ("model", "tiny")] == 1


def test_samples_count_in_the_order_in_which_they_came(calibrated, monkeypatch):
    watch = Watch(calibrated, Metrics(), Watching(drift_rate=1e6))
    seen = []
    monkeypatch.setattr(watch, "_count", lambda ticket: seen.append(ticket))
    tickets = [make_ticket(calibrated, torch.zeros(1, 3, 16, 16)) for _ in range(3)]
    for ticket in tickets:
        watch.expect(ticket)
    for i in (2, 0, 1):
        tickets[i].left = 0
        watch.see([tickets[i]])
    assert seen == tickets


def test_only_so_many_a_second_and_only_the_own_policy(calibrated):
    watch = Watch(calibrated, Metrics(), Watching(drift_rate=3.0))
    watch_answers(calibrated, watch, torch.randn(50, 3, 16, 16))
    assert 3 <= watch.monitor.state().samples < 20
    watch.expect(make_ticket(calibrated, torch.zeros(1, 3, 16, 16), min_confidence=0.5))
    assert not watch._pending


def test_the_shadow_compares_with_the_final_exit(model, images):
    metrics = Metrics()
    watch = Watch(model, metrics, Watching(shadow=1.0))
    assert watch.monitor is None  # thresholds by hand: there is nothing to compare with
    watch_answers(model, watch, images[:20])
    with model.open_engine() as engine:
        count = 1
        while watch.run_idle(engine):
            count += 1
        assert not watch.run_idle(engine)
    assert count == 20
    outputs = model.net(images[:20])
    exits = xl.predict(model.net, images[:20], model.policies["default"])
    agree = exits.labels == outputs[-1].logits.argmax(1)
    found = read(metrics)
    for k in range(3):
        left = exits.exits == k
        for word, same in (("true", True), ("false", False)):
            expected = int((left & (agree == same)).sum())
            name = "exitlens_shadow_answers_total", ("agrees", word), ("exit", str(k)), ("model", "tiny")
            assert found.get(name, 0) == expected


def test_the_shadow_takes_its_share_of_samples_and_only_of_the_own_policy(model, images):
    watch = Watch(model, Metrics(), Watching(shadow=0.5))
    for policy, few, many in (("fast", 0, 0), ("default", 12, 28)):
        ticket = make_ticket(model, images[:40], policy=policy)
        run(model, [ticket])
        watch.see([ticket])
        assert few <= len(watch._shadowed) <= many


@pytest.mark.slow
def test_thresholds_adapt_to_requests_without_terms_of_their_own(model, images, send, tmp_path):
    adapting = Adapting(adapt=0.3, audit=0.5, warm_up=200, state=tmp_path)
    adapted = adapt(model, adapting)
    endpoint = Endpoint(adapted, Batching(batch=4), Watching(), Metrics())
    try:
        assert endpoint.watch.monitor is None  # it would take audits for drift
        tickets = [send(endpoint, images).result() for _ in range(10)]
        send(endpoint, images, policy="fast").result()
        send(endpoint, images, min_confidence=0.1).result()
        status = adapted.adaptive.status
        assert status.taken == 10 * len(images)
        exits = torch.cat([torch.from_numpy(ticket.exits) for ticket in tickets])
        assert (exits == 2).sum() >= status.audited > 0
        assert status.open == 0
        found = read(endpoint.metrics)
        assert found["exitlens_adaptive_audits_total", ("model", "tiny")] > 0
        for ticket in tickets:
            early = ticket.exits < 2
            assert (ticket.confidence[early] >= ticket.thresholds[early]).all()
            assert np.isinf(ticket.thresholds[~early]).all()
    finally:
        endpoint.close()
    assert adapt(model, adapting).adaptive.status.taken == status.taken  # its place is free again, and its counts are kept


def test_heads_that_a_bundle_lacks_cannot_be_audited(model):
    with pytest.raises(xl.errors.PolicyError, match=r"adapt: tiny has no heads at exits \[1\], where audits look. Fix: "):
        adapt(replace(model, exits=frozenset({0, 2})), Adapting(adapt=0.3, audit=0.5, warm_up=200))
    assert adapt(model, Adapting()) is model


@pytest.mark.parametrize("given", [{"state": "x"}, {"propose": True}])
def test_settings_of_thresholds_that_do_not_adapt_are_refused(given):
    with pytest.raises(xl.errors.InputError, match="state, propose: they need adapt, got adapt=0"):
        Adapting(**given)
    with pytest.raises(xl.errors.InputError, match="loss: expected one of"):
        Adapting(adapt=0.1, loss="accuracy")


@pytest.mark.parametrize("loss", ["divergence", "binding"])
def test_what_maps_show_can_be_limited(model, images, send, loss):
    endpoint = Endpoint(
        adapt(model, Adapting(adapt=0.3, loss=loss, audit=0.9, warm_up=400)), Batching(batch=4), Watching(), Metrics()
    )
    try:
        ticket = send(endpoint, images).result()
        assert not ticket.maps  # nobody asked for them
        status = endpoint.model.adaptive.status
        assert (status.taken, status.open) == (len(images), 0)
        assert status.lost > 0
    finally:
        endpoint.close()
