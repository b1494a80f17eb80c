"""Thresholds that adapt: the promise by brute force, what an audit teaches, and how a change of the data is met."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

import exitlens as xl
from exitlens.errors import InputError, PolicyError
from exitlens.functional import adapting
from exitlens.functional.adapting import Audits, find_most
from tests.conftest import random_trace

COST = torch.tensor([0.2, 0.5, 1.0])


def make(**options):
    return xl.Adaptive(xl.Policy((0.6, 0.6)), **{"limit": 0.1, "window": 1000, "audit": 0.1, "seed": 0, **options})


def tell(adaptive, losses, exits, audited=None, scores=None, window=0):
    losses = torch.as_tensor(losses).float()
    count = len(losses)
    scores = torch.full((count, 2), 0.7) if scores is None else scores
    audited = torch.ones(count, dtype=torch.bool) if audited is None else audited
    adaptive.learn(Audits(scores, losses, torch.as_tensor(exits), audited, torch.full((count,), window)), COST)


@pytest.mark.parametrize(("limit", "window", "audit", "delta"), [(0.1, 1000, 0.1, 0.1), (0.02, 50_000, 0.05, 0.05)])
def test_early_answers_stop_as_late_as_the_promise_allows(limit, window, audit, delta):
    """More than B failures come before the r-th success exactly if B + r trials have fewer than r successes."""

    def broken(most):
        return sum(binom.cdf(m * most - 1, round(m * limit * window) + m * most, audit) for m in range(1, 60))

    most = find_most(limit, window, audit, delta)
    assert broken(most) <= delta < broken(most + 1)


def test_the_promise_holds_where_every_early_answer_is_another_one(monkeypatch):
    """The worst that data can do, without alarms: broken nearly as often as is allowed, and not more often."""
    monkeypatch.setattr(adapting, "SURE", math.inf)
    monkeypatch.setattr(adapting, "LEAST", 10**9)
    broken = 0
    for seed in range(300):
        adaptive, given = make(seed=seed), 0
        for _ in range(10):
            audited = adaptive.draw(100, COST)
            leave = adaptive.admit(torch.ones(100, dtype=torch.bool), audited)
            given += int(leave.sum())
            tell(adaptive, torch.ones(int(audited.sum()), 2), torch.zeros(int(audited.sum()), dtype=torch.long))
        assert adaptive.status.window_lost >= adaptive.most
        broken += given > 100
    exact = binom.cdf(adaptive.most - 1, 100 + adaptive.most, 0.1)
    assert 0.02 < exact <= 0.1
    assert broken / 300 == pytest.approx(exact, abs=3 * (exact / 300) ** 0.5)


def test_samples_leave_in_order_until_too_many_may_be_lost():
    adaptive = make()
    adaptive.most = 2
    fired, audited = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([0, 1, 1, 0, 1, 0]).bool()
    assert adaptive.admit(fired, audited).tolist() == [True, False, False, True, False, False]
    assert adaptive.status.stops == 1
    assert adaptive.thresholds == (math.inf, math.inf)
    tell(adaptive, [[0, 0], [0, 0]], [0, 1])  # both would have been the final answer after all
    assert adaptive.status.window_lost == 0
    assert adaptive.thresholds == (0.6, 0.6)
    adaptive.admit(fired, audited)
    tell(adaptive, [[0, 0], [1, 0]], [0, 0])
    assert adaptive.status.window_lost == 1


def test_a_new_window_has_a_budget_of_its_own():
    adaptive = make(window=300)
    adaptive.draw(192, COST)
    adaptive.admit(torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    adaptive.draw(192, COST)
    assert (adaptive.window_number, adaptive.status.window_lost) == (0, 2)
    adaptive.draw(64, COST)
    assert (adaptive.window_number, adaptive.status.window_answered, adaptive.status.window_lost) == (1, 64, 0)
    tell(adaptive, [[0, 0], [0, 0]], [0, 0])  # of the window before: nothing is given back
    assert adaptive.status.window_lost == 0
    assert adaptive.status.answered == 448


def test_losses_that_come_fast_are_an_alarm_and_fresh_samples_end_it():
    adaptive = make(limit=0.02, window=20_000)
    tell(adaptive, torch.zeros(150, 2), [0] * 150)
    tell(adaptive, torch.ones(3, 2), [0] * 3)
    assert adaptive.status.alarms == 0
    tell(adaptive, torch.ones(3, 2), [0] * 3)
    assert adaptive.status.alarms == 1
    assert adaptive.is_relearning
    assert adaptive.thresholds == (math.inf, math.inf)
    count = adapting.LEAST
    scores = torch.linspace(0.3, 1, count)[:, None].expand(-1, 2)
    losses = (scores < 0.6).float()
    tell(adaptive, losses, [2] * count, torch.zeros(count, dtype=torch.bool), scores)
    assert not adaptive.is_relearning
    first, second = adaptive.thresholds
    assert first == pytest.approx(0.6, abs=0.03)  # as low as it can be: it costs least
    assert second > 0.5


def test_seen_samples_that_were_not_drawn_are_no_alarm():
    adaptive = make(limit=0.02, window=20_000)
    tell(adaptive, torch.ones(50, 2), [0] * 50, torch.zeros(50, dtype=torch.bool))
    assert adaptive.status.alarms == 0


def stream(parts, seed=0):
    """Samples one after the other; in a part, an early answer is another one where its score is below the part's number."""
    rng = torch.Generator().manual_seed(seed)
    count = sum(size for size, _ in parts)
    scores = 0.5 + 0.5 * torch.rand(count, 1, generator=rng).expand(-1, 2)
    bad = torch.cat([torch.full((size, 1), number) for size, number in parts])
    logits = torch.zeros(count, 3, 2)
    logits[:, :2, 0] = (scores / (1 - scores)).log()
    logits[:, 2, 0] = torch.where(scores[:, 0] < bad[:, 0], -9.0, 9.0)
    return xl.Trace(logits, None, torch.zeros(count, 3), COST)


def test_a_stream_that_changes_keeps_the_limit_where_a_fixed_policy_breaks_it():
    trace = stream([(15_000, 0.55), (10_000, 0.8), (15_000, 0.55)])
    policy = xl.calibrate(stream([(2000, 0.55)], seed=1), max_disagreement=0.03, temperature_scaling=False)
    adaptive = xl.Adaptive(policy, audit=0.05, window=10_000, seed=0)
    assert adaptive.limit == 0.03
    exits = adaptive.replay(trace)
    lost, fixed = (
        trace.answers.gather(1, taken[:, None])[:, 0] != trace.answers[:, -1] for taken in (exits, xl.route(trace, policy))
    )
    running = lost.cumsum(0) / torch.arange(1, len(lost) + 1)
    assert running[5000:].max() <= 0.03 < fixed.float().mean()
    assert adaptive.status.alarms >= 1
    cost = COST[exits]
    assert cost[10_000:15_000].mean() < 0.45  # cheap before the change
    assert cost[-5000:].mean() < 0.45  # and again after it


def test_equal_seeds_toss_equal_coins_and_others_do_not():
    trace = stream([(3000, 0.6)])
    first, second, third = (make(seed=seed, audit=0.3).replay(trace) for seed in (1, 1, None))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": None}, "limit: the policy was not calibrated with one"),
        ({"limit": 0}, "limit: expected a number above 0 and below 1, got 0"),
        ({"delta": 1.0}, "delta: expected"),
        ({"audit": 0.0}, "audit: expected"),
        ({"window": 0}, "window: expected"),
        ({"window": 10}, "window: in 10 answers 0.1 of them tell too little of a limit of 0.1. Fix: pass a larger window"),
    ],
)
def test_options_that_promise_nothing(options, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        make(**options)


def test_without_early_exits_nothing_adapts():
    with pytest.raises(InputError, match="no early exits"):
        xl.Adaptive(xl.Policy(()), limit=0.1)


def test_the_window_that_an_error_names_is_enough():
    assert find_most(0.1, math.ceil(20 / 0.1 / 0.1), 0.1, 0.1) > 5


def test_a_policy_of_another_network_replays_nothing():
    with pytest.raises(PolicyError):
        make().replay(random_trace(k=4))
    adaptive = xl.Adaptive(replace(xl.Policy((0.6, 0.6)), network="0" * 16), limit=0.1, seed=0)
    with pytest.raises(PolicyError):
        adaptive.replay(replace(random_trace(), network="1" * 16))
