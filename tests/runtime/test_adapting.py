"""Thresholds that adapt, without PyTorch: the library's numbers, its promise by brute force, and answers of audited samples."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import exitlens as xl
import exitlens_runtime as er
from exitlens.functional import adapting as library
from exitlens.model.engine.adapting import Observed
from exitlens_runtime import adapting
from exitlens_runtime.adapting import LEAST, Adaptive, charge_audit, choose_thresholds
from tests.runtime.conftest import NET


def make(runtime, **options):
    return Adaptive(runtime, **{"limit": 0.1, "warm_up": 2000, "audit": 0.15, "seed": 0, **options})


@pytest.mark.parametrize(("chance", "bet", "limit"), [(0.1, 0.05, 0.1), (0.02, 0.012, 0.02), (0.01, 0.02, 0.1)])
def test_the_numbers_are_those_of_the_library(chance, bet, limit):
    assert charge_audit(chance, bet) == library.charge_audit(chance, bet)
    for loss in (0.0, 0.5, 1.0):
        assert adapting.add_evidence(1.0, loss, limit) == library.add_evidence(1.0, loss, limit)


def test_it_promises_and_doubts_what_the_library_does(runtime):
    """What is learnt is alike, but thresholds are found by a simpler search."""
    ours, theirs = make(runtime, warm_up=None), xl.Adaptive(xl.Policy((0.8, 0.7)), limit=0.1, audit=0.15)
    assert ours.warm_up == theirs.warm_up
    rng = np.random.default_rng(0)
    scores = rng.random((400, 2)).astype(np.float32)
    losses = (rng.random((400, 2)) < 0.3 * (1 - scores)).astype(np.float32)
    exits, chances = np.where(scores[:, 0] > 0.8, 0, 2), rng.choice([0.1, 0.3], 400)
    ours.learn(scores, losses, exits, chances)
    given = (torch.from_numpy(part) for part in (scores, losses, exits, chances))
    theirs.learn(Observed(*given), torch.tensor([0.2, 0.5, 1.0]))
    assert ours._charged == pytest.approx(theirs._charged)
    ours._chosen = theirs.policy.thresholds
    ours._fresh, ours._doubt = 0, theirs._doubt
    for k in (0, 1):
        assert (ours.doubt(k, scores[:, k]) == theirs.doubt(k, torch.from_numpy(scores[:, k])).numpy()).all()
    assert ours._find_room() == pytest.approx(theirs._find_room())


def test_thresholds_cost_about_as_little_as_the_librarys():
    rng = np.random.default_rng(0)
    scores = rng.random((1000, 2)).astype(np.float32)
    losses = (rng.random((1000, 2)) < 0.4 * (1 - scores)).astype(np.float32)
    cost = np.array([0.2, 0.5, 1.0])

    def judge(thresholds):
        fired = np.concatenate([scores >= np.array(thresholds), np.ones((1000, 1), bool)], 1)
        exits = fired.argmax(1)
        lost = np.concatenate([losses, np.zeros((1000, 1))], 1)[np.arange(1000), exits]
        return cost[exits].mean(), lost.mean()

    same = np.ones(1000)
    spent, lost = judge(choose_thresholds(scores, losses, cost, 0.05, same))
    assert lost <= 0.05
    given = torch.from_numpy(scores), torch.from_numpy(losses), torch.tensor(cost).float()
    best, _ = judge(library.choose_thresholds(*given, 0.05, torch.ones(1000)))
    assert best - 0.01 <= spent <= best + 0.04
    assert choose_thresholds(scores, np.ones_like(losses), cost, 0.0, same) == (math.inf, math.inf)
    assert judge(choose_thresholds(scores, np.zeros_like(losses), cost, 0.0, same))[0] == pytest.approx(0.2)


@pytest.mark.slow
def test_the_promise_holds_where_every_early_answer_is_another_one(runtime, monkeypatch):
    monkeypatch.setattr(adapting, "add_evidence", lambda *_: 0.0)
    monkeypatch.setattr(adapting, "LEAST", 10**9)
    broken = 0
    for seed in range(100):
        adaptive, wrong, is_over = make(runtime, seed=seed, audit=0.3, warm_up=1000), 0, False
        for taken in range(100, 2100, 100):
            watch, everyone = adaptive.watch(100), np.arange(100)
            stay = everyone[~watch.decide(0, everyone, np.full(100, 0.9, np.float32), np.ones(100, int))]
            wrong += 100 - len(stay)
            stay = stay[~watch.decide(1, stay, np.zeros(len(stay), np.float32), np.ones(len(stay), int))]
            watch.end(stay, np.zeros(len(stay), int))
            is_over |= wrong > 0.1 * max(taken, 1000)
        broken += is_over
        assert wrong > 50  # it leaves room for early answers
    assert broken / 100 <= 0.1 + 3 * (0.1 * 0.9 / 100) ** 0.5


def test_audited_samples_get_the_final_answer_and_others_theirs(runtime, images):
    adaptive = make(runtime, limit=0.9, audit=0.5, warm_up=100_000)
    pred = runtime.with_policy("default").predict(images.numpy(), attention=True, adaptive=adaptive)
    usual = xl.predict(NET, images, xl.Policy((0.8, 0.7)))
    moved = pred.exits != usual.exits.numpy()
    assert (pred.exits[moved] == 2).all()
    assert moved.sum() <= adaptive.audited
    final = xl.predict(NET, images, xl.Policy.never(3))
    late = pred.exits == 2
    assert (pred.labels[late] == final.labels.numpy()[late]).all()
    assert adaptive.taken == len(images)
    reasons = [runtime.give_reason(pred, i) for i in range(len(pred))]
    assert not any(">=" in reason for reason in reasons)  # the thresholds of the time are not known any more
    assert {reason.partition(";")[0] for reason in np.array(reasons)[late]} == {
        "no earlier exit was sure enough, or its answer was to be checked"
    }


def test_sudden_losses_are_an_alarm_and_what_was_learnt_can_be_kept(runtime):
    adaptive = make(runtime, limit=0.02, warm_up=20_000)
    tell = [np.full((6, 2), 0.9, np.float32), np.ones((6, 2), np.float32), np.zeros(6, int), np.full(6, 0.1)]
    adaptive._open = 6
    adaptive.learn(*tell)
    assert (adaptive.alarms, adaptive.lost, adaptive.thresholds) == (1, 6, (math.inf, math.inf))
    assert (adaptive.watch(10).chances == 1).all()
    scores = np.repeat(np.linspace(0.3, 1, LEAST, dtype=np.float32)[:, None], 2, 1)
    losses, last = (scores < 0.6).astype(np.float32), np.full(LEAST, 2)
    adaptive.learn(scores, losses, last, np.ones(LEAST))
    assert 0.55 < adaptive.thresholds[0] < 0.7
    adaptive._open, adaptive._charged_open = 2, 3.0  # on their way when the device lost power
    kept = json.loads(json.dumps(adaptive.to_dict()))
    again = make(runtime, limit=0.02, warm_up=20_000).restore(kept)
    assert again.thresholds == adaptive.thresholds
    assert (again.taken, again.lost, again._charged, again._open) == (10, 8, adaptive._charged + 3, 0)
    for other in (
        make(runtime, limit=0.05, warm_up=20_000),
        make(runtime.with_policy(xl.Policy((0.5, 0.5), "margin").to_dict())),
    ):
        with pytest.raises(er.InputError, match=r"values: expected the state of an Adaptive .* Fix: "):
            other.restore(kept)
    with pytest.raises(er.InputError, match=r"values: expected the state of an Adaptive .* Fix: "):
        again.restore([])
    for damage in ({"scores": "x"}, {"thresholds": 3}, {"thresholds": [0.5]}, {"taken": None}):
        values = {name: value for name, value in (kept | damage).items() if value is not None}
        with pytest.raises(er.InputError, match="values: they are damaged"):
            again.restore(values)
    again._is_relearning = True
    assert make(runtime, limit=0.02, warm_up=20_000).restore(again.to_dict()).thresholds == (math.inf, math.inf)


def test_early_answers_stop_until_the_limit_allows_more(runtime):
    adaptive = make(runtime)
    adaptive._charged = adaptive._find_room() + 0.1
    assert adaptive.thresholds == (math.inf, math.inf)
    adaptive.watch(4000)
    assert adaptive.thresholds == (0.8, 0.7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit: expected a number above 0"),
        ({"audit": 1.5}, "audit: expected"),
        ({"warm_up": 0}, "warm_up: expected a whole number"),
        ({"warm_up": "x"}, "warm_up: expected a whole number"),
        ({"limit": "x"}, "limit: expected a number"),
    ],
)
def test_options_that_promise_nothing(runtime, options, words):
    with pytest.raises(er.InputError, match=words):
        make(runtime, **options)


@pytest.mark.slow
def test_heads_that_a_bundle_lacks_are_named(tmp_path):
    edge = xl.export(NET, xl.Policy((math.inf, 0.7)), tmp_path / "e")
    with pytest.raises(er.InputError, match=r"no heads at exits \[0\]. Fix: "):
        make(er.load(edge, threads=1))


def test_a_stream_goes_on_with_one(runtime, images):
    adaptive = make(runtime, limit=0.9, audit=0.1, warm_up=100_000)
    batches = itertools.repeat(images[:8].numpy(), 5)
    assert sum(map(len, runtime.predict_stream(batches, adaptive=adaptive))) == adaptive.taken == 40
    assert 0 < adaptive.audited < 40
