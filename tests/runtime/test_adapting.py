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
from exitlens_runtime import adapting
from exitlens_runtime.adapting import LEAST, Adaptive, choose_thresholds, find_largest_sum
from tests.runtime.conftest import NET


def make(runtime, **options):
    return Adaptive(runtime, **{"limit": 0.1, "window": 1000, "audit": 0.1, "seed": 0, **options})


@pytest.mark.parametrize(("limit", "window", "audit"), [(0.1, 1000, 0.1), (0.02, 100_000, 0.02)])
def test_the_numbers_are_those_of_the_library(limit, window, audit):
    assert find_largest_sum(limit, window, audit, 0.1) == library.find_largest_sum(limit, window, audit, 0.1)
    for loss in (0.0, 0.5, 1.0):
        assert adapting.add_evidence(1.0, loss, limit) == library.add_evidence(1.0, loss, limit)


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

    spent, lost = judge(choose_thresholds(scores, losses, cost, 0.05))
    assert lost <= 0.05
    given = torch.from_numpy(scores), torch.from_numpy(losses), torch.tensor(cost).float()
    best, _ = judge(library.choose_thresholds(*given, 0.05 + 1 / 1000))
    assert best - 0.01 <= spent <= best + 0.04
    assert choose_thresholds(scores, np.ones_like(losses), cost, 0.0) == (math.inf, math.inf)
    assert judge(choose_thresholds(scores, np.zeros_like(losses), cost, 0.0))[0] == pytest.approx(0.2)


def test_the_promise_holds_where_every_early_answer_is_another_one(runtime, monkeypatch):
    monkeypatch.setattr(adapting, "add_evidence", lambda *_: 0.0)
    monkeypatch.setattr(adapting, "LEAST", 10**9)
    broken = 0
    for seed in range(200):
        adaptive, wrong = make(runtime, seed=seed), 0
        for _ in range(10):
            watch, everyone = adaptive.watch(100), np.arange(100)
            stay = everyone[~watch.decide(0, everyone, np.full(100, 0.9, np.float32), np.ones(100, int))]
            wrong += 100 - len(stay)
            stay = stay[~watch.decide(1, stay, np.zeros(len(stay), np.float32), np.ones(len(stay), int))]
            watch.end(stay, np.zeros(len(stay), int))
        broken += wrong > 100
    assert broken / 200 <= 0.1


def test_audited_samples_get_the_final_answer_and_others_theirs(runtime, images):
    adaptive = make(runtime, limit=0.9, audit=0.5, window=100_000)
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
    adaptive = make(runtime, limit=0.02, window=20_000)
    tell = [np.full((6, 2), 0.9, np.float32), np.ones((6, 2), np.float32), np.zeros(6, int), np.ones(6, bool), 0]
    adaptive._open = 6
    adaptive.learn(*tell)
    assert (adaptive.alarms, adaptive.lost, adaptive.thresholds) == (1, 6, (math.inf, math.inf))
    assert adaptive.watch(10).observed.all()
    scores = np.repeat(np.linspace(0.3, 1, LEAST, dtype=np.float32)[:, None], 2, 1)
    losses, last = (scores < 0.6).astype(np.float32), np.full(LEAST, 2)
    adaptive.learn(scores, losses, last, np.zeros(LEAST, bool), 0)
    assert 0.55 < adaptive.thresholds[0] < 0.7
    adaptive._open = 2  # on their way when the device lost power
    kept = json.loads(json.dumps(adaptive.to_dict()))
    again = make(runtime, limit=0.02, window=20_000).restore(kept)
    assert again.thresholds == adaptive.thresholds
    assert (again.taken, again.lost, again._window_lost, again._open) == (10, 8, 8, 0)
    for other in (
        make(runtime, limit=0.05, window=20_000),
        make(runtime.with_policy(xl.Policy((0.5, 0.5), "margin").to_dict())),
    ):
        with pytest.raises(er.InputError, match=r"values: expected the state of an Adaptive .* Fix: "):
            other.restore(kept)
    with pytest.raises(er.InputError, match=r"values: expected the state of an Adaptive .* Fix: "):
        again.restore([])
    for damage in ({"scores": "x"}, {"thresholds": 3}, {"taken": None}):
        values = {name: value for name, value in (kept | damage).items() if value is not None}
        with pytest.raises(er.InputError, match="values: they are damaged"):
            again.restore(values)
    again._is_relearning = True
    assert make(runtime, limit=0.02, window=20_000).restore(again.to_dict()).thresholds == (math.inf, math.inf)


def test_a_new_window_has_a_budget_of_its_own(runtime):
    adaptive = make(runtime)
    adaptive._window_lost = 50
    assert adaptive.thresholds == (math.inf, math.inf)
    adaptive.watch(1000)
    adaptive.watch(1)
    assert adaptive.thresholds == (0.8, 0.7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit: expected a number above 0"),
        ({"audit": 1.5}, "audit: expected"),
        ({"window": 50}, "window: 50 samples tell too little"),
        ({"window": "x"}, "window: expected a whole number"),
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
    adaptive = make(runtime, limit=0.9, audit=0.3, window=100_000)
    batches = itertools.repeat(images[:8].numpy(), 5)
    assert sum(map(len, runtime.predict_stream(batches, adaptive=adaptive))) == adaptive.taken == 40
    assert 0 < adaptive.audited < 40
