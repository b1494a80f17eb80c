"""The router of a policy that adapts: audited samples go on, and what they show is learnt; streams made to break the promise."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings

import exitlens as xl
from exitlens.errors import InputError
from exitlens.functional.maps import geometric_mean
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.model.engine import adapting
from exitlens.model.engine.auditing import AuditedRouter, open_router
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import Router
from exitlens.model.engine.tuning import Tuning
from tests.conftest import make_net
from tests.model.engine.test_adapting import COST
from tests.model.engine.test_router import cases, engine


class Logits:
    """A head that answers with logits that it is given."""

    def __init__(self, k):
        self.k = k

    def classify(self, logits):
        return logits[:, self.k]


def sample(first, second, *, last=0):
    """Logits of an image: at each early exit a score and a class, and the final class."""
    row = torch.zeros(3, 2)
    for k, (score, answer) in enumerate((first, second, (0.99, last))):
        row[k, answer] = math.log(score / (1 - score))
    return row


EASY, HARD = sample((0.95, 0), (0.95, 0)), sample((0.55, 1), (0.55, 1))
WRONG, LATER = sample((0.95, 1), (0.95, 1)), sample((0.95, 0), (0.95, 1))  # at both exits; at exit 1 alone


def play(adaptive, calls, micro_batch=0):
    """Answer batches of logits, each at once, and return how many wrong answers there were more than the promise allows."""
    lost, taken, most = 0, 0, -math.inf
    running = Engine([lambda logits: (logits,)] * 3, [Logits(k) for k in range(3)], Tuning())
    for logits in calls:
        router = open_router(running, adaptive, COST, micro_batch=micro_batch)
        answers = logits.argmax(-1)
        for part in router.run(torch.arange(len(logits)), (logits,)):
            lost += int((answers[part.where, part.exit] != answers[part.where, 2]).sum())
        taken += len(logits)
        most = max(most, lost - adaptive.limit * max(taken, adaptive.warm_up))
        assert min(adaptive.status.lost, adaptive.status.open, adaptive.opened) >= 0
    return most


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [0, 16, 512])
@pytest.mark.parametrize("seed", range(3))
def test_streams_made_to_break_the_promise_do_not(seed, micro_batch):
    """Samples that are kept at one exit must not leave unobserved at the next; and alarms and stops in between."""
    options = {"limit": 0.05, "warm_up": 4000, "audit": 0.08, "seed": seed}
    later = torch.cat([EASY.expand(300, 3, 2), HARD.expand(300, 3, 2), LATER.expand(400, 3, 2)])
    assert play(xl.Adaptive(xl.Policy((0.9, 0.9)), **options), [later] * 20, micro_batch) <= 0
    swinging = [WRONG.expand(300, 3, 2), EASY.expand(900, 3, 2)] * 20
    assert play(xl.Adaptive(xl.Policy((0.9, 0.9)), **options), swinging, micro_batch) <= 0


@pytest.mark.slow
def test_many_samples_at_once_leave_as_early_as_few():
    adaptive = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05, seed=0)
    running = Engine([lambda logits: (logits,)] * 3, [Logits(k) for k in range(3)], Tuning())
    for micro_batch in (0, 128):
        routed = open_router(running, adaptive, COST, micro_batch=micro_batch).run(
            torch.arange(8192), (EASY.expand(8192, 3, 2),)
        )
        assert sum(len(part.where) for part in routed if part.exit == 0) > 0.87 * 8192  # the others are audits
    assert adaptive.status.open == 0


@pytest.mark.slow
def test_threads_share_the_counts():
    adaptive = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.1, warm_up=1000, audit=0.15, seed=0)
    mixed = torch.cat([EASY.expand(90, 3, 2), WRONG.expand(6, 3, 2)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: play(adaptive, [mixed] * 12, 16), range(4)))
    assert adaptive.status.taken == 4 * 12 * 96
    assert adaptive.status.open == 0


def test_an_abandoned_stream_ends_its_audits(images):
    net, adaptive = make_net(), xl.Adaptive(xl.Policy((0.0, 0.0)), limit=0.5, audit=0.5, seed=0)
    for _ in xl.predict_stream(net, images.split(4), adaptive, order="ready"):
        break
    assert adaptive.status.open == 0
    assert adaptive.status.audited > 0


class Told(xl.Adaptive):
    """Remembers what it learnt."""

    def __init__(self, *words, **named):
        super().__init__(*words, **named)
        self.told = []

    def learn(self, audits, cost):
        self.told.append(audits)
        super().learn(audits, cost)

    def join(self):
        """All that it learnt: scores, losses, exits and chances."""
        return (torch.cat([getattr(each, name) for each in self.told]) for name in ("scores", "losses", "exits", "chances"))


def watch(thresholds, audit=0.3, **options):
    return Told(xl.Policy(thresholds), limit=0.9, audit=audit, warm_up=100_000, **{"seed": 1, **options})


@given(cases())
@settings(max_examples=50, deadline=None)
@pytest.mark.slow
def test_audited_samples_leave_at_the_end_and_others_where_they_fire(case):
    scores, thresholds, micro_batch, cuts, attention = case
    assume(thresholds)
    runs, adaptive = engine(scores.shape[1])[0], watch(thresholds)
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
    assert adaptive.status.audited == audited
    if told:
        seen, losses, *_ = adaptive.join()
        assert all((scores[:, :-1].float() - row).abs().sum(1).min() < 1e-5 for row in seen)
        assert not losses.any()  # every exit answers class 0


def test_what_is_learnt_is_what_a_trace_has(images):
    net = make_net()
    trace, adaptive = xl.collect(net, images), watch((0.5, 0.5), audit=0.99)
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


def test_the_divergence_of_maps_can_be_limited(images):
    net = make_net()
    trace, adaptive = xl.collect(net, images), watch((0.5, 0.5), audit=0.99, loss="divergence")
    pred = xl.predict(net, images, adaptive)
    seen, losses, exits, _ = adaptive.join()
    scores = score_early_exits(trace, adaptive.policy)
    rows = [int((scores - row).abs().sum(1).argmin()) for row in seen]
    torch.testing.assert_close(losses, trace.divergence[rows, :-1])
    at = torch.cat([losses, torch.zeros(len(losses), 1)], 1).gather(1, exits[:, None])
    assert adaptive.status.lost == pytest.approx(at.sum().item())
    assert pred.attention is None  # nobody asked for maps
    with pytest.raises(InputError, match="labels tell nothing of divergence"):
        adaptive.feedback("0", 1)
    with pytest.raises(InputError, match="limit: the policy was not calibrated with one"):
        xl.Adaptive(xl.Policy((0.5, 0.5)), loss="divergence")
    with pytest.raises(InputError, match="loss: expected one of"):
        watch((0.5, 0.5), loss="accuracy")


@pytest.mark.parametrize("micro_batch", [0, 8])
@pytest.mark.slow
def test_a_stream_learns_as_batches_do(images, micro_batch, monkeypatch):
    monkeypatch.setattr(adapting, "LEAST", 10**9)  # new thresholds come at other moments
    net = make_net()
    net.tuning = net.tuning.__class__(**{**net.tuning.__dict__, "micro_batch": micro_batch})
    batches = images.repeat(10, 1, 1, 1).split(20)
    first, second = watch((0.5, 0.5)), watch((0.5, 0.5))
    one_by_one = torch.cat([xl.predict(net, batch, first).exits for batch in batches])
    streamed = torch.cat([pred.exits for pred in xl.predict_stream(net, batches, second)])
    assert first.status.audited == second.status.audited > 0
    assert torch.equal(one_by_one, streamed)
    assert first.status == second.status


def test_after_an_alarm_every_sample_is_seen(images):
    net, adaptive = make_net(), watch((0.0, 0.0), audit=0.01)
    adaptive._is_relearning = True
    pred = xl.predict(net, images, adaptive)
    assert (pred.exits == 2).all()
    _, _, exits, chances = adaptive.join()
    assert len(exits) == len(images)
    assert (chances == 1).all()
    assert (adaptive.status.audited, adaptive.status.lost) == (0, 0)


def test_a_gate_is_compared_with_its_estimates(images):
    net = make_net()
    policy = xl.calibrate(xl.collect(net, images), max_disagreement=0.5, gate=True)
    adaptive = Told(policy, audit=0.99, seed=0)
    xl.predict(net, images, adaptive)
    expected = score_early_exits(xl.collect(net, images), policy)
    for row in next(adaptive.join()):
        assert (expected - row).abs().sum(1).min() < 1e-4


def test_several_labels_are_others_if_one_is(images):
    net = make_net()
    net.describe(task="multilabel")
    adaptive = Told(xl.Policy((0.5, 0.5), "decided"), limit=0.9, audit=0.99, seed=0)
    pred = xl.predict(net, images, adaptive)
    answers = xl.collect(net, images).answers
    losses = (answers[:, :-1] != answers[:, -1:]).any(-1)[pred.exits == 2]
    _, told, *_ = adaptive.join()
    assert sorted(map(tuple, told.bool().tolist())) == sorted(map(tuple, losses.tolist()))


def test_dropped_samples_are_forgotten():
    adaptive, scores = watch((0.9, 0.9), audit=0.99), torch.full((6, 3), 0.6)
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
    assert isinstance(open_router(engine(2)[0], watch((math.inf,)), torch.tensor([0.5, 1])), AuditedRouter)


def test_an_open_audit_that_is_dropped_is_lost():
    adaptive = xl.Adaptive(xl.Policy((0.6, 0.6)), limit=0.5, audit=0.99, seed=0)
    running = Engine([lambda logits: (logits,)] * 3, [Logits(k) for k in range(3)], Tuning())
    router = open_router(running, adaptive, COST, micro_batch=4)
    router.admit(torch.arange(4), (EASY.expand(4, 3, 2),), 0.0)
    router.run_stage(0)
    assert adaptive.status.open > 0
    count = adaptive.status.open
    router.discard(torch.arange(4))
    assert (adaptive.status.open, adaptive.status.lost) == (0, count)


class Failing(Logits):
    """Fails at the sample whose first logit is no number."""

    def classify(self, logits):
        if logits.isnan().any():
            raise RuntimeError("no room")
        return super().classify(logits)


def test_answers_before_an_error_are_not_lost_and_open_audits_are_given_up():
    adaptive = xl.Adaptive(xl.Policy((0.6, 0.6)), limit=0.5, audit=0.5, warm_up=10, seed=0)  # few samples at a time
    running = Engine([lambda logits: (logits,)] * 3, [Failing(k) for k in range(3)], Tuning())
    router = open_router(running, adaptive, COST, micro_batch=8)
    logits = EASY.repeat(64, 1, 1)
    logits[-1] = math.nan
    with pytest.raises(RuntimeError, match="no room"):
        router.feed(torch.arange(64), (logits,))
    before = torch.cat([part.where for part in router.take_routed()])
    assert len(before) > 20
    router.discard(torch.arange(64))
    assert adaptive.status.open == 0


def test_an_audit_that_cannot_be_learnt_from_is_lost(monkeypatch):
    adaptive = xl.Adaptive(xl.Policy((0.6, 0.6)), limit=0.5, audit=0.99, seed=0)
    monkeypatch.setattr(AuditedRouter, "_observe", lambda *_: (_ for _ in ()).throw(RuntimeError("no room")))
    running = Engine([lambda logits: (logits,)] * 3, [Logits(k) for k in range(3)], Tuning())
    with pytest.raises(RuntimeError, match="no room"):
        open_router(running, adaptive, COST).run(torch.arange(4), (EASY.expand(4, 3, 2),))
    assert (adaptive.status.open, adaptive.status.lost) == (0, 4)


def test_where_no_sample_may_leave_all_run_together():
    adaptive = xl.Adaptive(xl.Policy((0.6, 0.6)), limit=0.1, warm_up=1, seed=0)
    calls, stage = [], lambda logits: (calls.append(len(logits)), (logits,))[1]
    running = Engine([stage] * 3, [Logits(k) for k in range(3)], Tuning())
    open_router(running, adaptive, COST).run(torch.arange(600), (EASY.expand(600, 3, 2),))
    assert calls == [512, 512, 512, 88, 88, 88]


@pytest.mark.slow
def test_a_limit_on_binding_is_told_which_answers_rest_on_their_maps(images):
    """By hand: the top fifth of the exit's map stays, and the rest comes from the audited sample before, without its object."""
    net = make_net()
    adaptive = watch((0.5, 0.5), audit=0.99, loss="binding")
    pred = xl.predict(net, images, adaptive)
    seen, losses, *_ = adaptive.join()
    rows = [int((score_early_exits(xl.collect(net, images), adaptive.policy) - row).abs().sum(1).argmin()) for row in seen]
    with torch.no_grad():
        outputs, modality, expected, donor = net.eval()(images), net.input_spec.modality, [], None
        for i in rows:
            image, maps = images[i : i + 1], [net.info.place(k, out.attention[i : i + 1]) for k, out in enumerate(outputs)]
            if donor is None:
                expected.append([1.0, 1.0])
            else:
                mixed = [modality.keep_only(image, donor, modality.choose_region(maps[k], image, 0.2)) for k in (0, 1)]
                expected.append(
                    [float(net(x)[k].logits.argmax() != outputs[k].logits[i].argmax()) for k, x in enumerate(mixed)]
                )
            donor = modality.paint_over(image, modality.choose_region(geometric_mean(maps), image, 0.4))
    assert losses.tolist() == expected
    assert 0 < losses[1:].mean() < 1
    assert pred.attention is None
    with pytest.raises(InputError, match="labels tell nothing of binding"):
        adaptive.feedback("0", 1)
    with pytest.raises(InputError, match="a trace does not tell binding"):
        adaptive.replay(xl.collect(net, images))
    with pytest.raises(InputError, match="limit: the policy was not calibrated with one"):
        xl.Adaptive(xl.Policy((0.5, 0.5)), loss="binding")


def test_samples_of_another_size_have_no_sample_before(images):
    net, adaptive = make_net(), watch((0.5, 0.5), audit=0.99, loss="binding")
    xl.predict(net, images[:3], adaptive)
    xl.predict(net, torch.cat([images, images], 3)[:3], adaptive)
    losses = [part.losses for part in adaptive.told]
    assert losses[0][0].tolist() == losses[-1][0].tolist() == [1, 1]
