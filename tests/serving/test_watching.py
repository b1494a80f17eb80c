"""Drift and shadow on live answers."""

import pytest
import torch

import exitlens as xl
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import wrap_network
from exitlens.serving.settings import Watching
from exitlens.serving.watching import Watch
from tests.serving.test_cascade import make_ticket, run
from tests.serving.test_metrics import read


@pytest.fixture
def calibrated(model):
    """Return the tiny network with a policy that was calibrated on samples."""
    rng = torch.Generator().manual_seed(5)
    images, labels = torch.randn(400, 3, 16, 16, generator=rng), torch.randint(4, (400,), generator=rng)
    trace = xl.collect(model.net, list(zip(images.split(50), labels.split(50), strict=True)))
    return wrap_network("tiny", model.net, {"default": xl.calibrate(trace, max_cost=0.9)})


def send(model, watch, images):
    """Send images through the cascade, one in a request, watched like a server's."""
    tickets = [make_ticket(model, image[None]) for image in images]
    for ticket in tickets:
        watch.expect(ticket)
    for ticket in run(model, tickets)[1]:
        watch.see([ticket])


def test_drifting_samples_are_noticed(calibrated):
    rng, metrics = torch.Generator().manual_seed(6), Metrics()
    watch = Watch(calibrated, metrics, Watching(drift_rate=1e6))
    send(calibrated, watch, torch.randn(300, 3, 16, 16, generator=rng))
    assert not watch.is_drifting
    assert watch.monitor.state().samples == 300
    send(calibrated, watch, 6 * torch.randn(600, 3, 16, 16, generator=rng))
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
    send(calibrated, watch, torch.randn(50, 3, 16, 16))
    assert 3 <= watch.monitor.state().samples < 20
    watch.expect(make_ticket(calibrated, torch.zeros(1, 3, 16, 16), min_confidence=0.5))
    assert not watch._pending


def test_the_shadow_compares_with_the_final_exit(model, images):
    metrics = Metrics()
    watch = Watch(model, metrics, Watching(shadow=1.0))
    assert watch.monitor is None  # thresholds by hand: there is nothing to compare with
    send(model, watch, images[:20])
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
