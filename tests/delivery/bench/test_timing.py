import os

import pytest
import torch
from scipy import stats

import exitlens as xl
from exitlens.delivery.bench.benchmark import AS_IS, MIXED, TUNED, Bench, list_exit_shares, machine, table
from exitlens.delivery.bench.contenders import Planned, StepTimes, measure_router_share, plan_exits
from exitlens.delivery.bench.timing import Times, interleave, interval, measure_peak_bytes, pin_threads, time_calls
from tests.conftest import TinyNet, make_net


def test_interval_is_the_median_with_a_bootstrap_interval():
    values = [1.0, 5.0, 2.0, 9.0, 4.0, 4.5, 3.0, 2.5, 7.0]
    found = interval(values)
    assert found.median == 4.0
    expected = stats.bootstrap((values,), lambda x, axis: torch.tensor(x).quantile(0.5, axis).numpy(), method="percentile")
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.6)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.6)
    assert interval([2.0]).to_list() == [2.0, 2.0, 2.0]


def test_ratios_are_of_paired_rounds():
    times = Times({"a": [[1.0, 1.0], [4.0, 4.0], [10.0, 10.0]], "b": [[1.0], [4.0], [10.0]]})
    assert times.ratio("a", "b").to_list() == [2.0, 2.0, 2.0]
    row = times.summary("a", samples=10)
    assert row["ms"][0] == 800.0
    assert row["call_p50_ms"] == 4000.0
    assert row["per_second"] == 1.25


def test_works_take_turns_after_a_warm_up():
    calls: list[str] = []
    works = {name: time_calls(lambda batch, name=name: calls.append(name + batch), ["1", "2"]) for name in "ab"}
    times = interleave(works, rounds=8)
    text = "".join(calls)
    assert text.startswith("a1a1a2b1b1b2")
    assert text.count("a1a1a2") == text.count("b1b1b2") == 9
    assert len({text[12 + 12 * i : 24 + 12 * i] for i in range(8)}) == 2  # either may come first
    assert [len(calls) for calls in times.rounds["a"]] == [2] * 8


def test_a_change_of_memory_is_warmed_up_for(monkeypatch):
    monkeypatch.setattr("exitlens.delivery.bench.timing.keep_memory", lambda kept: kept)
    calls: list[int] = []
    assert len(time_calls(calls.append, [1], kept=True)()) == len(time_calls(calls.append, [2])()) == 1
    assert calls == [1, 1, 2]


def test_peak_counts_what_is_held_at_once():
    def run(_: object) -> None:
        a = torch.ones(1000)  # 4000 bytes
        b = a + 1
        del a
        b + 1

    assert 8000 <= measure_peak_bytes(time_calls(run, [0])) < 12000


def test_pinned_takes_threads_and_processors_and_gives_them_back():
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    with pin_threads(1):
        assert torch.get_num_threads() == 1
        assert len(os.sched_getaffinity(0)) == 1
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


def test_plans_have_the_shares():
    assert plan_exits((0.5, 0.3, 0, 0.2), 40).bincount().tolist() == [20, 12, 0, 8]
    assert plan_exits((0.5, 0.3, 0, 0.2), 8).bincount().tolist() == [4, 2, 0, 2]
    assert plan_exits((0, 0, 0, 1), 3).tolist() == [3, 3, 3]
    assert plan_exits((1, 1), 40, seed=1).tolist() != plan_exits((1, 1), 40, seed=2).tolist()
    assert set(list_exit_shares(4)) == {"nobody leaves", "all at exit 0", MIXED, "40/30/20/10"}
    assert list_exit_shares(3)["80/20"] == (0.8, 0.0, 0.2)
    assert list(list_exit_shares(1)) == ["nobody leaves"]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_planned_samples_leave_where_they_should(whole, micro_batch):
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=micro_batch)
    plan = plan_exits((0.5, 0.25, 0.25), 16)
    ran = [0, 0, 0]
    for k in range(3):
        net.stage(k).register_forward_hook(lambda _, given, __, k=k: ran.__setitem__(k, ran[k] + len(given[0])))
    Planned(net, plan, whole).work(torch.randn(16, 3, 16, 16), 16)()
    if whole:
        assert ran == [16, 16, 16]
    else:
        assert ran == [16, 8, 4]


def test_the_ideal_is_stage_times_by_shares():
    net = make_net()
    steps = StepTimes(net, torch.randn(4, 3, 16, 16), 2)
    steps.rounds = [[1.0, 2.0, 4.0]]
    assert steps.ideal(torch.tensor([0, 1, 2, 2])) == [1.0 + 0.75 * 2.0 + 0.5 * 4.0]
    assert steps()[0] == sum(steps.rounds[1])


def test_a_bench_has_every_contender_with_figures():
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=4, folded=True)
    images = torch.randn(6, 3, 16, 16)
    bench = Bench(TinyNet(), net, images, xl.Policy((0.6, 0.6)))
    found = bench.run(8, rounds=2, seconds=0)
    names = [row["name"] for row in found["rows"]]
    assert {AS_IS, TUNED, "exits, nobody leaves", "exits, all at exit 0", "exits, 80/20", "exits, policy"} <= set(names)
    assert found["samples"] == 40
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name[AS_IS]["speedup"] == [1.0, 1.0, 1.0]
    assert by_name["exits, all at exit 0"]["ideal_ms"] < by_name["exits, nobody leaves"]["ideal_ms"]
    assert "saving" in by_name["exits, 80/20"]
    assert "saving" not in by_name["exits, nobody leaves"]
    assert by_name["exits, nobody leaves"]["peak_mb"] > 0
    assert len(table(found)) == len(names) + 1
    few = bench.run(2, rounds=1, seconds=0, memory=False, keep=lambda name: "80/20" in name)
    assert {row["name"] for row in few["rows"]} == {AS_IS, TUNED, "exits, 80/20", "exits, 80/20, whole batches"}
    assert 0 < bench.router_time(8, runs=2)[0] < 1
    assert 0 < measure_router_share(Planned(net, plan_exits((1, 1, 1), 6)), images)() < 1
    assert machine(2)["threads"] == 2
