"""The timer on real work, and times of exits on fake clocks: an answer takes the time that the test says."""

import itertools
import time

import pytest
import torch
from scipy import stats

import exitlens as xl
from exitlens.delivery.benchmark import time_calls
from exitlens.model import timing
from tests.conftest import make_net, make_unet

SECONDS = {"exit 0": 0.02, "exit 1": 0.05, "exit 2": 0.11, timing.WHOLE: 0.1}


@pytest.fixture
def clock(monkeypatch):
    """A clock that an answer moves on by the time of its exit, ``share`` of it on a processor."""
    now = {"wall": 0.0, "processor": 0.0, "share": 1.0}
    names = {policy: name for name, policy in timing.list_policies(3).items()}

    def answer(call):
        spent = SECONDS[names[call._policy]]
        now["wall"] += spent
        now["processor"] += now["share"] * spent

    monkeypatch.setattr(timing._Call, "_answer", answer)
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "thread_time", lambda: now["processor"])
    return now


def test_milliseconds_of_every_exit(clock, net, images):
    latency = timing.measure_exits(net, images)
    assert latency.ms == pytest.approx((20.0, 50.0, 110.0))
    assert latency.low == pytest.approx(latency.ms)
    assert latency.cost == pytest.approx((0.2, 0.5, 1.1))
    assert (latency.batch_size, latency.rounds, latency.threads) == (40, timing.ROUNDS, torch.get_num_threads())
    assert latency.machine["device"] == "cpu"
    assert "threads" not in latency.machine
    net.tuning = xl.Tuning(threads=1)
    assert timing.measure_exits(net, images, 3).threads == 1


def test_a_thread_that_waits_for_a_processor_says_that_the_machine_is_busy(clock, net, images):
    clock["share"] = 0.5
    with pytest.raises(xl.errors.EngineError, match=r"had a processor for 50% of the time.*nothing else running"):
        timing.measure_exits(net, images)


def test_short_calls_are_repeated(monkeypatch, clock, net, images):
    monkeypatch.setitem(SECONDS, "exit 0", 0.001)
    call = timing._Call(net, images, timing.list_policies(3)["exit 0"])
    assert call() == pytest.approx([0.001])
    assert call._repeats == 10
    assert call.take_times() == pytest.approx((0.01, 0.01))


def test_answers_leave_where_they_should_and_batches_are_filled(monkeypatch):
    net, seen = make_net(), []
    run = timing.Router.run

    def spy(router, where, activations):
        heads = [k for k, needed in enumerate(router._needed) if needed]
        seen.append((len(where), heads, {part.exit for part in run(router, where, activations)}))
        return run(router, where, activations)

    monkeypatch.setattr(timing.Router, "run", spy)
    monkeypatch.setattr(timing, "measure_quietly", lambda calls, presence: [call._answer() for call in calls.values()])
    monkeypatch.setattr(timing, "summarize", lambda *args: None)
    timing.measure_exits(net, torch.randn(3, 3, 16, 16), 7)
    assert seen == [(7, [0, 1, 2], {0}), (7, [0, 1, 2], {1}), (7, [0, 1, 2], {2}), (7, [2], {2})]


@pytest.fixture
def no_time(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)


def works(*seconds):
    """Works of exits 0, 1, ..., each giving its seconds in order, again and again."""
    cycles = [itertools.cycle(values) for values in seconds]
    return {f"exit {k}": lambda times=times: [next(times)] for k, times in enumerate(cycles)}


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([2.0, 3.0], r"exit 1: half of the times between 2e\+03 and 3e\+03 ms.*last of 4 attempts"),
        ([0.5], r"exit 1 took 500 ms, exit 0 before it 1e\+03 ms"),
    ],
)
def test_spread_times_and_a_later_exit_that_is_faster_are_refused(no_time, times, message):
    with pytest.raises(xl.errors.EngineError, match=message):
        timing.measure_quietly(works([1.0], times), lambda: 1.0)


def test_it_is_measured_again_until_it_is_quiet(no_time):
    assert len(timing.measure_quietly(works([1.0, 1.01, 0.99], [2.0]), lambda: 1.0).rounds["exit 0"]) == timing.ROUNDS
    shares = iter([0.5, 0.7, 0.95])
    assert timing.measure_quietly(works([1.0]), lambda: next(shares)).seconds("exit 0")[0] == 1.0
    assert next(shares, None) is None


def test_equal_times_are_made_to_increase():
    times = timing.Times({"exit 0": [[1.0]], "exit 1": [[0.99]], timing.WHOLE: [[2.0]]})
    latency = timing.summarize(times, 8, 2, {})
    assert latency.ms == pytest.approx((1000.0, 1000.1))
    assert latency.whole_ms == 2000.0


def test_interval_is_the_median_with_a_bootstrap_interval():
    values = [1.0, 5.0, 2.0, 9.0, 4.0, 4.5, 3.0, 2.5, 7.0]
    median = timing.interval(values)
    assert median.median == 4.0
    expected = stats.bootstrap((values,), lambda x, axis: torch.tensor(x).quantile(0.5, axis).numpy(), method="percentile")
    assert median.low == pytest.approx(expected.confidence_interval.low, abs=0.6)
    assert median.high == pytest.approx(expected.confidence_interval.high, abs=0.6)
    assert timing.interval([2.0]).to_list() == [2.0, 2.0, 2.0]


def test_ratios_are_of_paired_rounds():
    times = timing.Times({"a": [[1.0, 1.0], [4.0, 4.0], [10.0, 10.0]], "b": [[1.0], [4.0], [10.0]]})
    assert times.ratio("a", "b").to_list() == [2.0, 2.0, 2.0]
    row = times.summary("a", samples=10)
    assert row["ms"][0] == 800.0
    assert row["call_p50_ms"] == 4000.0
    assert row["per_second"] == 1.25


def test_works_take_turns_after_a_warm_up():
    calls: list[str] = []
    works = {name: time_calls(lambda batch, name=name: calls.append(name + batch), ["1", "2"]) for name in "ab"}
    times = timing.interleave(works, rounds=8)
    text = "".join(calls)
    assert text.startswith("a1a1a2b1b1b2")
    assert text.count("a1a1a2") == text.count("b1b1b2") == 9
    assert len({text[12 + 12 * i : 24 + 12 * i] for i in range(8)}) == 2  # either may come first
    assert [len(calls) for calls in times.rounds["a"]] == [2] * 8


def test_a_machine_has_a_name_and_threads():
    machine = timing.describe_machine(2)
    assert machine["threads"] == 2
    assert machine["processor"]
    assert timing.describe_machine(0)["threads"] >= 1


def test_networks_that_answer_each_pixel_are_timed_by_their_own_score(monkeypatch):
    net, asked = make_unet(), []
    monkeypatch.setattr(
        timing, "measure_quietly", lambda works, presence: asked.append(works) or timing.interleave(works, rounds=1)
    )
    timing.measure_exits(net, torch.randn(2, 3, 16, 16))
    (works,) = asked
    assert [call._policy.score for call in works.values()] == ["mean_probability"] * 4
