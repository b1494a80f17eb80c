"""A policy that adapts: its promise by brute force, its journal, and labels that come later."""

import copy
import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.errors import InputError, PolicyError
from exitlens.functional.adapting import LEAST, charge_audit
from exitlens.model.engine import adapting
from exitlens.model.engine.adapting import Observed
from exitlens.types import AdaptiveStatus
from tests.conftest import random_trace

COST = torch.tensor([0.2, 0.5, 1.0])


def make(**options):
    return xl.Adaptive(xl.Policy((0.6, 0.6)), **{"limit": 0.1, "warm_up": 2000, "audit": 0.15, "seed": 0, **options})


def tell(adaptive, losses, exits, chance=0.1, scores=None):
    losses = torch.as_tensor(losses).float()
    count = len(losses)
    scores = torch.full((count, 2), 0.7) if scores is None else scores
    chances = torch.full((count,), chance, dtype=torch.float64)
    adaptive.learn(Observed(scores, losses, torch.as_tensor(exits), chances), COST)


def open_audits(adaptive, count, chance=0.1):
    every = torch.ones(count, dtype=torch.bool)
    return adaptive.decide(every, torch.full((count,), chance, dtype=torch.float64), every)


@pytest.mark.slow
@pytest.mark.parametrize(("doubtful", "count"), [(0.2, 20), (0.2, 40), (0.0, 120)])
def test_the_promise_holds_at_every_moment_where_every_early_answer_is_another_one(monkeypatch, doubtful, count):
    """The worst that data can do, without alarms."""
    monkeypatch.setattr(adapting, "add_evidence", lambda *_: 0.0)
    monkeypatch.setattr(adapting, "LEAST", 10**9)
    broken, shares, rng = 0, [], np.random.default_rng(0)
    for seed in range(count):
        adaptive, given, is_over = make(seed=seed, audit=0.3, warm_up=1000), 0, False
        for taken in range(20, 3020, 20):
            coins = adaptive.draw(20)
            chances = coins.find_chances(torch.from_numpy(rng.random(20) < doubtful))
            audited = coins.luck < chances
            leaving = adaptive.decide(torch.ones(20, dtype=torch.bool), chances, audited)
            given += int((leaving & ~audited).sum())
            is_over |= given > 0.1 * max(taken, 1000)
            for chance in chances[leaving & audited].tolist():
                tell(adaptive, torch.ones(1, 2), [0], chance)
        broken, shares = broken + is_over, [*shares, given / 3000]
        assert adaptive.status.open == 0
    assert broken <= 0.1 * count + 3 * (0.1 * 0.9 * count) ** 0.5
    assert 0.05 < np.mean(shares) < 0.1  # and it leaves room for early answers


def test_samples_leave_in_order_until_too_many_may_be_lost():
    """Each by the coins of those before it alone: the fifth is kept by the second and the fourth."""
    adaptive = make()
    fired, audited = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([0, 1, 1, 1, 1, 0]).bool()
    chances = torch.full((6,), 0.1, dtype=torch.float64)
    charge = charge_audit(0.1, adaptive.bet)
    adaptive.warm_up = (1.5 * charge - math.log(0.1)) / adaptive.bet / 0.1  # room for one and a half
    leaving = adaptive.decide(fired, chances, audited)
    assert leaving.tolist() == [True, True, False, True, False, False]
    assert (adaptive.status.open, adaptive.status.audited) == (2, 0)
    assert adaptive.opened == pytest.approx(2 * charge)
    tell(adaptive, [[0, 0], [1, 0]], [0, 0])
    assert (adaptive.status.open, adaptive.status.audited, adaptive.status.lost, adaptive.opened) == (0, 2, 1, 0)
    assert adaptive.policy.thresholds == (0.6, 0.6)
    assert adaptive.free == pytest.approx(0.5 * charge)
    assert adaptive.decide(fired, chances, audited).tolist() == [True, True, False, False, False, False]
    tell(adaptive, [[1, 0]], [0])
    assert adaptive.policy.thresholds == (math.inf, math.inf)
    assert adaptive.status.bound > adaptive.status.allowed
    assert not adaptive.decide(fired, chances, audited).any()
    adaptive.draw(10_000)  # the limit allows more by then
    assert adaptive.policy.thresholds == (0.6, 0.6)


def test_audits_are_oftener_of_doubtful_samples_and_while_few_were_taken():
    adaptive = make(audit=0.15, warm_up=2000)
    first, *_, later = (adaptive.draw(1000) for _ in range(5))
    assert (*first.chances, first.observed, first.first) == pytest.approx((0.2, 0.6, 0.6, 0))
    assert (*later.chances, later.observed, later.first) == pytest.approx((0.1, 0.3, 0.3, 4000))
    assert later.luck.mean() == pytest.approx(0.5, abs=0.05)
    assert adaptive.doubt(0, torch.tensor([0.99])).all()  # nothing is known yet
    adaptive._doubt = 0.1
    assert adaptive.doubt(1, torch.tensor([0.65, 0.75])).tolist() == [True, False]
    adaptive._doubt = 0.0
    assert adaptive.doubt(1, torch.tensor([0.6, 0.61])).tolist() == [True, False]  # with equal scores all are doubtful
    assert later.find_chances(torch.tensor([True, False])).tolist() == pytest.approx([0.3, 0.1])
    assert make(audit=0.9).draw(1).chances[1] == 1
    adaptive._is_relearning = True
    assert adaptive.draw(1).observed == 1


def test_an_audit_that_gets_no_answer_counts_as_lost():
    adaptive = make()
    open_audits(adaptive, 2, 0.3)
    adaptive.give_up(0.3)
    assert (adaptive.status.open, adaptive.status.lost) == (1, 1)
    assert adaptive.opened == pytest.approx(charge_audit(0.3, adaptive.bet))
    proposing = make(act=False)
    proposing.give_up(0.3)
    assert proposing.status.lost == 0


def test_losses_that_come_fast_are_an_alarm_and_fresh_samples_end_it():
    adaptive = make(limit=0.02, warm_up=20_000)
    tell(adaptive, torch.zeros(150, 2), [0] * 150)
    tell(adaptive, torch.ones(3, 2), [0] * 3)
    assert adaptive.status.alarms == 0
    tell(adaptive, torch.ones(3, 2), [0] * 3)
    assert adaptive.status.alarms == 1
    assert adaptive.status.relearning
    assert adaptive.policy.thresholds == (math.inf, math.inf)
    count = LEAST
    scores = torch.linspace(0.3, 1, count)[:, None].expand(-1, 2)
    losses = (scores < 0.6).float()
    tell(adaptive, losses, [2] * count, 1.0, scores)
    assert not adaptive.status.relearning
    first, second = adaptive.policy.thresholds
    assert first == pytest.approx(0.6, abs=0.03)  # as low as it can be: it costs least
    assert second > 0.5


def test_observed_samples_that_would_not_have_left_are_no_alarm_and_no_loss():
    adaptive = make(limit=0.02, warm_up=20_000)
    tell(adaptive, torch.ones(50, 2), [2] * 50)
    assert (adaptive.status.alarms, adaptive.status.lost) == (0, 0)


def test_losses_where_they_are_expected_are_no_alarm():
    """The doubtful quarter loses a tenth, five times the limit, which is known once thresholds were chosen."""
    adaptive, rng = make(limit=0.02, warm_up=100_000), torch.Generator().manual_seed(0)
    adaptive._doubt, adaptive._expected = 0.05, (0.02, 0.1)
    losses = (torch.rand(100, 1, generator=rng) < 0.1).float().expand(-1, 2)
    tell(adaptive, losses, [0] * 100, scores=torch.full((100, 2), 0.62))
    assert 5 < losses[:, 0].sum() < 15
    assert adaptive.status.alarms == 0
    tell(adaptive, losses, [0] * 100, scores=torch.full((100, 2), 0.8))
    assert adaptive.status.alarms == 1


def test_where_every_early_answer_is_another_one_more_losses_are_no_surprise():
    adaptive = make(limit=0.1)
    tell(adaptive, torch.ones(LEAST, 2), [2] * LEAST, 1.0)
    adaptive._chosen, adaptive._expected = adaptive._given, (0.1, 0.1)
    adaptive._expect(adaptive._kept)
    assert adaptive._expected == (0.1, 0.5)
    tell(adaptive, torch.ones(1, 2), [0])
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


@pytest.mark.slow
def test_a_stream_that_changes_keeps_the_limit_where_a_fixed_policy_breaks_it():
    trace = stream([(15_000, 0.55), (10_000, 0.8), (15_000, 0.55)])
    policy = xl.calibrate(stream([(2000, 0.55)], seed=1), max_disagreement=0.03, temperature_scaling=False)
    adaptive = xl.Adaptive(policy, audit=0.075, warm_up=10_000, seed=0)
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


@pytest.mark.slow
def test_equal_seeds_toss_equal_coins_and_others_do_not():
    trace = stream([(3000, 0.6)])
    first, second, third = (make(seed=seed, audit=0.3).replay(trace) for seed in (1, 1, None))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": None}, "limit: the policy was not calibrated with one"),
        ({"limit": 0}, "limit: expected a number in (0, 1), got 0"),
        ({"delta": 1.0}, "delta: expected"),
        ({"audit": 0.0}, "audit: expected"),
        ({"warm_up": 0}, "warm_up: expected"),
    ],
)
def test_options_that_promise_nothing(options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        make(**options)


def test_without_early_exits_nothing_adapts():
    with pytest.raises(InputError, match="no early exits"):
        xl.Adaptive(xl.Policy(()), limit=0.1)


def test_by_default_early_answers_begin_at_once_and_a_short_beginning_defers_them():
    assert make(warm_up=None).policy.thresholds == (0.6, 0.6)
    adaptive = make(warm_up=1)
    assert adaptive.policy.thresholds == (math.inf, math.inf)
    adaptive.draw(10_000)
    assert adaptive.policy.thresholds == (0.6, 0.6)


def test_a_policy_of_another_network_replays_nothing():
    with pytest.raises(PolicyError):
        make().replay(random_trace(k=4))
    adaptive = xl.Adaptive(replace(xl.Policy((0.6, 0.6)), network="0" * 16), limit=0.1, seed=0)
    with pytest.raises(PolicyError):
        adaptive.replay(replace(random_trace(), network="1" * 16))


def test_a_copy_goes_on_from_the_same_counts_and_coins():
    adaptive = make()
    tell(adaptive, torch.zeros(300, 2), [0] * 300)
    for other in (copy.deepcopy(adaptive), pickle.loads(pickle.dumps(adaptive))):
        assert other.status == adaptive.status
        assert torch.equal(other.draw(50)[0], copy.deepcopy(adaptive).draw(50)[0])


def test_scores_that_are_no_numbers_are_not_learnt_from():
    adaptive = make()
    scores = torch.full((300, 2), 0.7)
    scores[::3] = math.nan
    tell(adaptive, torch.zeros(300, 2), [2] * 300, scores=scores)
    assert adaptive.policy.thresholds[0] < 0.7


@pytest.mark.slow
def test_a_limit_on_divergence_holds_where_maps_move_apart():
    trace = stream([(15_000, 0.6), (15_000, 0.9)])
    distance = trace.answers != trace.answers[:, -1:]
    trace = replace(trace, divergence=(0.02 + 0.5 * distance.float()) * torch.tensor([1.0, 1.0, 0.0]))
    policy = xl.calibrate(trace.select(torch.arange(2000)), max_divergence=0.08, temperature_scaling=False)
    adaptive = xl.Adaptive(policy, loss="divergence", audit=0.075, warm_up=10_000, seed=0)
    assert adaptive.limit == 0.08
    exits = adaptive.replay(trace)
    far, fixed = (
        torch.where(taken < 2, trace.divergence.gather(1, taken[:, None])[:, 0], 0.0)
        for taken in (exits, xl.route(trace, policy))
    )
    running = far.cumsum(0) / torch.arange(1, len(far) + 1)
    assert running[5000:].max() <= 0.08 < fixed[15_000:].mean()
    assert COST[exits[:15_000]].mean() < 0.6


def test_another_object_goes_on_from_a_folder(tmp_path):
    """What was open when the first ended counts as lost; what it learnt stays."""
    first = make(limit=0.2).keep(tmp_path)
    first.draw(500)
    open_audits(first, 3)
    tell(first, [[0, 0], [1, 0]], [0, 0])
    scores = torch.linspace(0.3, 1, LEAST)[:, None].expand(-1, 2)
    tell(first, (scores < 0.6).float(), [2] * LEAST, scores=scores)
    before = first.status
    assert before.open == 1
    first.close()
    second = make(limit=0.2).keep(tmp_path)
    counts = second.status
    assert (counts.taken, counts.lost, counts.open, counts.audited) == (500, 2, 0, 3)
    assert counts.bound == pytest.approx(before.bound)
    assert counts.thresholds == before.thresholds != (0.6, 0.6)
    assert torch.equal(second._kept.scores, first._kept.scores)
    second.close()


def test_processes_of_a_folder_learn_from_each_other_and_share_delta(tmp_path):
    first, second = (make(limit=0.02, warm_up=20_000, seed=seed).keep(tmp_path, processes=2) for seed in (0, 1))
    assert first.status.bound == second.status.bound > make(limit=0.02, warm_up=20_000).status.bound
    tell(first, torch.ones(6, 2), [0] * 6)
    assert (first.status.alarms, second.status.alarms) == (1, 0)
    tell(second, [[0, 0]], [0])
    assert second.status.relearning
    assert second.status.lost == 0  # the other's are not its own
    scores = torch.linspace(0.3, 1, LEAST)[:, None].expand(-1, 2)
    tell(first, (scores < 0.6).float(), [2] * LEAST, 1.0, scores)
    tell(second, [[0, 0]], [2], scores=scores[:1])
    assert second.policy.thresholds[0] == pytest.approx(0.6, abs=0.05)
    first.close()
    second.close()


def test_without_a_journal_that_can_be_written_no_sample_leaves_early(tmp_path, monkeypatch, caplog):
    adaptive = make().keep(tmp_path)
    monkeypatch.setattr(adapting.Journal, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    assert not open_audits(adaptive, 2).any()
    assert adaptive.policy.thresholds == (math.inf, math.inf)
    assert "no room" in caplog.text
    assert len(caplog.records) == 1
    adaptive.draw(2)
    tell(adaptive, [[0, 0]], [0])
    assert len(caplog.records) == 1
    adaptive.close()


def test_a_copy_of_one_with_a_folder_has_none(tmp_path):
    with_folder = make().keep(tmp_path)
    copied = pickle.loads(pickle.dumps(with_folder))
    assert open_audits(copied, 1).all()  # which the first would write down
    assert not (tmp_path / "0.jsonl").read_text()
    with_folder.close()
    make().close()  # nothing to give back


@pytest.mark.slow
def test_one_that_only_proposes_leaves_samples_as_they_are_and_counts_what_it_would_do():
    trace = stream([(5000, 0.55), (15_000, 0.8)])
    acting, proposing = (make(limit=0.05, warm_up=10_000, act=act) for act in (True, False))
    exits = proposing.replay(trace)
    moved = exits != xl.route(trace, xl.Policy((0.6, 0.6)))
    assert (exits[moved] == 2).all()
    assert moved.sum() > 1000
    assert proposing.status.lost <= proposing.status.audited
    assert proposing.policy.thresholds == (0.6, 0.6)
    acting.replay(trace)
    assert proposing.status.lost < 2 * acting.status.lost + 20
    assert proposing.status.alarms == acting.status.alarms == 1
    assert proposing.status.thresholds == pytest.approx(acting.status.thresholds, abs=0.05)
    assert proposing.status.open == 0


def test_proposals_and_acts_are_promises_of_their_own(tmp_path):
    proposing = make(act=False).keep(tmp_path)
    assert not proposing.act
    proposing.close()
    with pytest.raises(InputError, match=r"expected one made with act=True, got .* with False"):
        make().keep(tmp_path)
    with pytest.raises(AttributeError):
        make().act = False


def test_what_was_counted_before_a_folder_would_be_lost(tmp_path):
    adaptive = make()
    adaptive.draw(1)
    with pytest.raises(InputError, match=r"or has taken samples in. Fix: make a new Adaptive"):
        adaptive.keep(tmp_path)


def test_a_copy_of_the_process_writes_nothing_and_answers_nothing_early(tmp_path, monkeypatch):
    adaptive = make().keep(tmp_path)
    assert open_audits(adaptive, 1).all()
    written = (tmp_path / "0.jsonl").read_bytes()
    monkeypatch.setattr("exitlens.model.engine.journal.os.getpid", lambda: 1)
    assert not open_audits(adaptive, 1).any()
    assert (tmp_path / "0.jsonl").read_bytes() == written
    monkeypatch.undo()
    adaptive.close()


def test_doubts_and_expectations_outlive_a_process(tmp_path):
    first = make().keep(tmp_path)
    scores = torch.linspace(0.3, 1, LEAST)[:, None].expand(-1, 2)
    tell(first, (scores < 0.6).float(), [2] * LEAST, scores=scores)
    before = first._doubt, first._expected
    assert 0 < before[0] < 1
    first.close()
    second = make().keep(tmp_path)
    assert (second._doubt, second._expected) == before
    second.close()


def test_a_folder_has_one_policy_and_places_for_so_many(tmp_path):
    make().keep(tmp_path).close()
    with pytest.raises(InputError, match=r"expected one made with limit=0.2, got .* with 0.1"):
        make(limit=0.2).keep(tmp_path)
    with pytest.raises(InputError, match=r"expected one made with score='margin', got .* with 'max_probability'"):
        xl.Adaptive(xl.Policy((0.6, 0.6), "margin"), limit=0.1, warm_up=2000, audit=0.15).keep(tmp_path)
    with pytest.raises(InputError, match="processes: expected a whole number"):
        make().keep(tmp_path, processes=0)


def tell_named(adaptive, answers, exits, first=0, name="{}", chance=0.1):
    answers = torch.tensor(answers)
    count = len(answers)
    losses = (answers[:, :-1] != answers[:, -1:]).float()
    names, chances = tuple(name.format(first + i) for i in range(count)), torch.full((count,), chance, dtype=torch.float64)
    seen = Observed(torch.full((count, 2), 0.7), losses, torch.tensor(exits), chances, names, answers)
    with torch.inference_mode():  # as routers do
        adaptive.learn(seen, COST)


def test_a_label_takes_back_a_loss_that_is_none():
    adaptive = make(limit=0.9)
    tell_named(adaptive, [[1, 0, 0], [1, 2, 0], [1, 1, 0], [3, 3, 3], [1, 0, 0]], [0, 1, 0, 2, 0])
    assert (adaptive.status.lost, adaptive.status.labelled) == (4, 0)
    assert adaptive.feedback("0", 0)  # the early answer was worse
    assert adaptive.status.lost == 4
    assert adaptive.feedback("1", 2)  # it was right
    assert adaptive.feedback("2", 3)  # both are wrong
    assert adaptive.feedback("3", 3)  # it would not have left early
    assert adaptive.status.lost == 2
    assert (adaptive.status.labelled, adaptive.status.final_wrong) == (4, 2)
    assert not adaptive.feedback("2", 3)  # told before
    assert not adaptive.feedback("77", 3)
    assert adaptive._kept.losses.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0], [1, 0]]
    before = adaptive.status.bound
    assert adaptive.feedback("4", 1)
    assert adaptive.status.lost == 1
    assert before - adaptive.status.bound == pytest.approx(charge_audit(0.1, adaptive.bet) / adaptive.bet)


def test_labels_of_no_class_excuse_nothing():
    adaptive = make(limit=0.9)
    tell_named(adaptive, [[1, 0, 0]], [0])
    adaptive.classes = 3
    with pytest.raises(InputError, match=r"label: expected numbers below 3, got 255. Fix: "):
        adaptive.feedback("0", 255)
    assert adaptive.status.lost == 1
    assert adaptive.feedback("0", 1)


def test_what_labels_take_back_is_no_change_for_the_better():
    """The last samples have no labels yet."""
    adaptive = make(limit=0.9, warm_up=100_000)
    tell_named(adaptive, [[1, 0, 0]] * 300, [2] * 300)
    for i in range(300):
        adaptive.feedback(str(i), 1)
    tell_named(adaptive, [[1, 0, 0]] * 200, [2] * 200, first=300)
    assert len(adaptive._kept.losses) == 500


def test_labels_are_sets_with_several_labels():
    adaptive = xl.Adaptive(xl.Policy((0.6, 0.6), "decided"), limit=0.1, warm_up=2000, audit=0.15)
    answers = torch.tensor([[[1, 0, 1], [1, 0, 0], [1, 1, 0]]] * 2).bool()
    lost, chances = torch.ones(2, 2), torch.full((2,), 0.1, dtype=torch.float64)
    seen = Observed(torch.full((2, 2), 0.7), lost, torch.tensor([0, 0]), chances, ("a", "b"), answers)
    adaptive.learn(seen, COST)
    assert adaptive.feedback("a", [0, 1])
    assert adaptive.feedback("b", [0, 2])
    assert adaptive.status.lost == 1
    assert adaptive.status.final_wrong == 1


def test_labels_are_told_to_all_processes_and_survive_them(tmp_path, monkeypatch):
    options, clock = {"limit": 0.2}, [1000.0]
    monkeypatch.setattr("exitlens.model.engine.journal.time.time", lambda: clock[0])
    first, second = (make(**options).keep(tmp_path, processes=2) for _ in range(2))
    open_audits(first, 4)
    tell_named(first, [[1, 0, 0], [1, 0, 0], [1, 0, 0]], [0, 0, 0], name="r/{}")
    assert not second.feedback("r/1", 1)  # the other has it
    assert first.status.lost == 3
    clock[0] = 10.0  # the clock is set back
    tell_named(first, [[0, 0, 0]], [0], first=3, name="r/{}")
    assert first.status.lost == 2
    first.feedback("r/2", 1)
    second.feedback("r/3", 0)  # which the first has not heard when it ends
    first.close()
    again = make(**options).keep(tmp_path, processes=2)
    assert (again.status.lost, again.status.labelled) == (1, 3)
    assert not again.feedback("r/1", 1)
    assert not again.feedback("r/2", 1)
    assert again.feedback("r/0", 1)
    assert again.status.lost == 0
    again.close()
    second.close()


def test_a_label_counts_once_however_often_the_process_restarts(tmp_path):
    options = {"limit": 0.2}
    first, second = (make(**options).keep(tmp_path, processes=2) for _ in range(2))
    open_audits(first, 3)
    tell_named(first, [[1, 0, 0]] * 3, [0] * 3, name="r/{}")
    second.feedback("r/1", 1)  # which the first has not heard when it ends
    first.close()
    for _ in range(3):
        again = make(**options).keep(tmp_path, processes=2)
        assert (again.status.lost, again.status.labelled) == (2, 1)
        again.close()
    second.close()


def test_what_labels_told_of_losses_survives_a_restart(tmp_path):
    first = make(limit=0.9).keep(tmp_path)
    first.classes = 3
    open_audits(first, 2)
    tell_named(first, [[1, 0, 0]] * 2, [0] * 2, name="r/{}")
    first.feedback("r/1", 1)
    first.close()
    second = make(limit=0.9).keep(tmp_path)
    assert second._kept.losses.tolist() == [[1, 0], [0, 0]]
    assert (second._told, second._forgiven) == (1, 1)
    with pytest.raises(InputError, match="expected numbers below 3"):
        second.feedback("r/0", 255)
    assert second.feedback("r/0", 1)
    assert second._kept.losses.tolist() == [[0, 0], [0, 0]]
    second.close()


def test_an_audit_is_settled_once_if_learning_fails(monkeypatch):
    adaptive = make()
    open_audits(adaptive, 3)
    monkeypatch.setattr(xl.Adaptive, "_watch_losses", lambda *_: (_ for _ in ()).throw(RuntimeError("no room")))
    with pytest.raises(RuntimeError):
        tell(adaptive, [[1, 0]], [0])
    assert (adaptive.status.open, adaptive.status.lost) == (2, 1)


def test_numbers_name_samples_of_one_object_alone(tmp_path):
    """Processes count for themselves, and the next one in a place from 0."""
    first, second = (make(limit=0.2).keep(tmp_path, processes=2) for _ in range(2))
    for each in (first, second):
        open_audits(each, 1)
    tell_named(second, [[1, 0, 0]], [0])
    tell_named(first, [[1, 1, 1]], [0])
    first.feedback("0", 1)
    tell_named(second, [[2, 2, 2]], [2], first=1)
    assert second.status.lost == 1
    assert (second._kept.losses[0, 0], second._kept.losses.shape) == (1, (3, 2))
    second.close()
    again = make(limit=0.2).keep(tmp_path, processes=2)
    assert not again.feedback("0", 1)
    assert again.draw(5).first == 0
    again.close()
    first.close()


@pytest.mark.parametrize("label", [-1, 1.5, "cat", [1, 2], None])
def test_labels_that_are_no_classes_are_refused_and_lose_nothing(label):
    adaptive = make(limit=0.9)
    tell_named(adaptive, [[1, 0, 0]], [0])
    with pytest.raises(InputError, match="label: expected the number of a class"):
        adaptive.feedback("0", label)
    assert adaptive.feedback("0", np.int64(1))


def test_one_that_is_closed_writes_nothing_and_answers_nothing_early(tmp_path):
    adaptive = make().keep(tmp_path)
    open_audits(adaptive, 2)
    tell_named(adaptive, [[1, 0, 0]], [0])
    adaptive.close()
    written = (tmp_path / "0.jsonl").read_bytes()
    assert not adaptive.feedback("0", 1)
    assert not open_audits(adaptive, 2).any()
    assert adaptive.policy.thresholds == (math.inf, math.inf)
    assert (tmp_path / "0.jsonl").read_bytes() == written
    with pytest.raises(InputError, match="this object has one, was closed or has taken samples in"):
        adaptive.keep(tmp_path)


GOOD = json.dumps(
    {"time": 1, "status": AdaptiveStatus(0, 0, 0.0, 0, 0.0, 0.0, 0, 0, 0, False, (0.6, 0.6)).to_dict()}
    | {"chosen": [0.6, 0.6], "doubt": "never", "expected": [0.1, 0.1], "labels": [0, 0], "charged": 0.0, "classes": 0}
)


def test_a_journal_whose_lines_say_something_else_is_refused_and_its_place_is_free(tmp_path):
    for line in (
        '{"time": 1, "status": {}}',
        '{"time": 1}',
        '{"time": 1, "seen": true}',
        '{"time": 1, "seen": {"scores": [[1]]}}',
        '{"time": 1, "seen": {"scores": [[1, 1]], "losses": [[0, 0]], "exits": [0]}}',
        '{"time": 1, "seen": {"scores": [[1, 1]], "losses": [[0, 0]], "exits": [0], "chances": [1], "names": ["a", "b"]}}',
        GOOD.replace("[0.1, 0.1]", "[]"),
        GOOD.replace("[0.6, 0.6]", "[0.6]"),
    ):
        make().keep(tmp_path).close()
        (tmp_path / "0.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match=r"is damaged .* Fix: choose another folder"):
            make().keep(tmp_path)
        (tmp_path / "0.jsonl").unlink()
    (tmp_path / "0.jsonl").write_text(GOOD + "\n")
    make().keep(tmp_path).close()


def test_lines_of_others_that_say_something_else_are_passed_over(tmp_path):
    first, second = (make(limit=0.9).keep(tmp_path, processes=2) for _ in range(2))
    first._journal.write(seen={"scores": [[1]]}, feedback={"name": "a/0", "label": "x"})
    first._journal.write(feedback={"name": "a/0", "label": [1, 2]})
    first._journal.write(feedback=3)
    tell_named(second, [[1, 0, 0]], [0], name="a/{}")
    assert second.status.lost == 1
    assert second.feedback("a/0", 1)
    first.close()
    second.close()


def test_the_journal_says_which_thresholds_are_in_force_and_which_were_chosen(tmp_path):
    adaptive = make(limit=0.02, warm_up=20_000).keep(tmp_path)
    tell(adaptive, torch.ones(6, 2), [0] * 6)
    line = json.loads((tmp_path / "0.jsonl").read_text().splitlines()[-1])
    assert (line["status"]["thresholds"], line["chosen"]) == (["never", "never"], [0.6, 0.6])
    adaptive.close()


def test_an_alarm_outlives_a_process(tmp_path):
    first = make(limit=0.02, warm_up=20_000).keep(tmp_path)
    tell(first, torch.ones(6, 2), [0] * 6)
    assert first.status.relearning
    first.close()
    second = make(limit=0.02, warm_up=20_000).keep(tmp_path)
    assert second.status.relearning
    scores = torch.linspace(0.3, 1, LEAST)[:, None].expand(-1, 2)
    tell(second, (scores < 0.6).float(), [2] * LEAST, 1.0, scores)
    assert not second.status.relearning
    second.close()
    third = make(limit=0.02, warm_up=20_000).keep(tmp_path)
    assert not third.status.relearning
    assert third.policy.thresholds[0] == pytest.approx(0.6, abs=0.05)
    third.close()


def test_a_loss_that_is_no_number_counts_as_the_worst():
    adaptive = make(limit=0.5, loss="divergence", warm_up=10_000)
    tell(adaptive, torch.tensor([[math.nan, 0.0], [0.25, 0.0]]), [0, 0])
    assert adaptive.status.lost == 1.25
    assert adaptive._kept.losses.tolist() == [[0.25, 0.0]]


def test_only_so_many_samples_wait_for_labels(monkeypatch):
    monkeypatch.setattr(adapting, "WAITING", 2)
    adaptive = make()
    tell_named(adaptive, [[1, 0, 0]] * 3, [0] * 3)
    assert [adaptive.feedback(str(i), 1) for i in range(3)] == [False, True, True]


@pytest.mark.slow
def test_with_labels_the_promise_is_about_answers_that_are_worse(monkeypatch):
    """Every early answer is another one, and every second of them is no worse: labels that come at once give twice as many."""
    monkeypatch.setattr(adapting, "add_evidence", lambda *_: 0.0)
    monkeypatch.setattr(adapting, "LEAST", 10**9)
    broken, left = 0, 0
    for seed in range(80):
        adaptive, worse = make(seed=seed, audit=0.3), 0
        for start in range(0, 2000, 10):
            coins = adaptive.draw(10)
            chances = coins.find_chances(torch.zeros(10, dtype=torch.bool))
            audited = coins.luck < chances
            leaving = adaptive.decide(torch.ones(10, dtype=torch.bool), chances, audited)
            places = (leaving & audited).nonzero().flatten()
            is_worse = torch.arange(10) % 2 == 0
            worse += int((leaving & ~audited & is_worse).sum())
            left += int((leaving & ~audited).sum())
            if len(places):
                tell_named(adaptive, [[1, 0, 0]] * len(places), [0] * len(places), start, chance=float(chances[0]))
                for i, place in enumerate(places.tolist()):
                    adaptive.feedback(str(start + i), 0 if is_worse[place] else 1)
        broken += worse > 200
    assert broken / 80 <= 0.1 + 3 * (0.1 / 80) ** 0.5
    assert left / 80 > 1.5 * 200 * 0.55
