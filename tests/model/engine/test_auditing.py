"""The router of a policy that adapts, on arithmetic networks and a small one."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings

import exitlens as xl
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.model.engine.auditing import AuditedRouter, open_router
from exitlens.model.engine.router import Router
from tests.conftest import make_net
from tests.model.engine.test_router import cases, engine


class Told(xl.Adaptive):
    """Remembers what it learnt."""

    def __init__(self, *words, **named):
        super().__init__(*words, **named)
        self.told = []

    def learn(self, audits, cost):
        self.told.append(audits)
        super().learn(audits, cost)

    def join(self):
        """All that it learnt: scores, losses, exits and whether audited."""
        return (torch.cat([getattr(each, name) for each in self.told]) for name in ("scores", "losses", "exits", "audited"))


def make(thresholds, audit=0.3, **options):
    return Told(xl.Policy(thresholds), limit=0.5, audit=audit, window=100_000, **{"seed": 1, **options})


@given(cases())
@settings(max_examples=50, deadline=None)
def test_audited_samples_leave_at_the_end_and_others_where_they_fire(case):
    scores, thresholds, micro_batch, cuts, attention = case
    assume(thresholds)
    runs, adaptive = engine(scores.shape[1])[0], make(thresholds)
    router = open_router(runs, adaptive, torch.linspace(0.2, 1, scores.shape[1]), attention, micro_batch)
    routed, numbers = [], torch.arange(len(scores))
    for start, end in itertools.pairwise(cuts):
        routed += router.feed(numbers[start:end], (scores[start:end], numbers[start:end]))
    routed += router.flush()
    exits = torch.full((len(scores),), -1)
    for part in routed:
        assert (exits[part.where] == -1).all()
        exits[part.where] = part.exit
    early = find_first_firing(scores, thresholds)
    last = scores.shape[1] - 1
    assert all(taken in (own, last) for taken, own in zip(exits.tolist(), early.tolist(), strict=True))
    told = adaptive.told
    audited = int((exits != early).sum())
    assert audited == sum(int((each.exits < last).sum()) for each in told)
    assert adaptive.status.audited == sum(len(each.exits) for each in told)
    if told:
        seen, losses, *_ = adaptive.join()
        assert all((scores[:, :-1].float() - row).abs().sum(1).min() < 1e-5 for row in seen)
        assert not losses.any()  # every exit answers class 0


def test_what_is_learnt_is_what_a_trace_has(images):
    net = make_net()
    trace, adaptive = xl.collect(net, images), make((0.5, 0.5), audit=0.99)
    pred = xl.predict(net, images, adaptive)
    seen, losses, exits, _ = adaptive.join()
    where = (pred.exits == 2).nonzero().squeeze(1)
    scores = score_early_exits(trace, adaptive.policy)
    rows = [int((scores - row).abs().sum(1).argmin()) for row in seen]
    assert sorted(rows) == where.tolist()
    torch.testing.assert_close(seen, scores[rows])
    assert torch.equal(losses.bool(), (trace.answers[:, :-1] != trace.answers[:, -1:])[rows])
    assert torch.equal(exits, find_first_firing(scores, (0.5, 0.5))[rows])
    assert torch.equal(pred.labels[where], trace.answers[where, 2])


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_a_stream_learns_as_batches_do(images, micro_batch):
    net = make_net()
    net.tuning = net.tuning.__class__(**{**net.tuning.__dict__, "micro_batch": micro_batch})
    batches = images.repeat(10, 1, 1, 1).split(20)
    first, second = make((0.5, 0.5)), make((0.5, 0.5))
    one_by_one = torch.cat([xl.predict(net, batch, first).exits for batch in batches])
    streamed = torch.cat([pred.exits for pred in xl.predict_stream(net, batches, second)])
    assert first.status.audited == second.status.audited > 0
    assert torch.equal(one_by_one, streamed)
    assert first.status == second.status


def test_after_an_alarm_every_sample_is_seen(images):
    net, adaptive = make_net(), make((0.0, 0.0), audit=0.01)
    adaptive._is_relearning = True
    pred = xl.predict(net, images, adaptive)
    assert (pred.exits == 2).all()
    _, _, exits, audited = adaptive.join()
    assert len(exits) == len(images)
    assert int(audited.sum()) == adaptive.status.audited
    assert adaptive.status.window_lost == 0


def test_a_gate_is_compared_with_its_estimates(images):
    net = make_net()
    policy = xl.calibrate(xl.collect(net, images), max_disagreement=0.5, gate=True)
    adaptive = Told(policy, audit=0.99, window=100_000, seed=0)
    xl.predict(net, images, adaptive)
    expected = score_early_exits(xl.collect(net, images), policy)
    for row in next(adaptive.join()):
        assert (expected - row).abs().sum(1).min() < 1e-4


def test_several_labels_are_others_if_one_is(images):
    net = make_net()
    net.describe(task="multilabel")
    adaptive = Told(xl.Policy((0.5, 0.5), "decided"), limit=0.5, audit=0.99, window=100_000, seed=0)
    pred = xl.predict(net, images, adaptive)
    answers = xl.collect(net, images).answers
    losses = (answers[:, :-1] != answers[:, -1:]).any(-1)[pred.exits == 2]
    _, told, *_ = adaptive.join()
    assert sorted(map(tuple, told.bool().tolist())) == sorted(map(tuple, losses.tolist()))


def test_dropped_samples_are_forgotten():
    adaptive, scores = make((0.9, 0.9), audit=0.99), torch.full((6, 3), 0.6)
    router = open_router(engine(3)[0], adaptive, torch.tensor([0.2, 0.5, 1]), micro_batch=10)
    numbers = torch.arange(6)
    router.feed(numbers, (scores, numbers))
    router.discard(numbers[:2])
    routed = router.flush()
    assert sorted(torch.cat([part.where for part in routed]).tolist()) == [2, 3, 4, 5]
    assert sum(len(each.exits) for each in adaptive.told) <= 4


def test_a_fixed_policy_gets_the_usual_router():
    router = open_router(engine(2)[0], xl.Policy((0.9,)), torch.tensor([0.5, 1]))
    assert type(router) is Router
    assert isinstance(open_router(engine(2)[0], make((math.inf,)), torch.tensor([0.5, 1])), AuditedRouter)
