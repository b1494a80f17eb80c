import os

import pytest
import torch

import exitlens as xl
from benchmarks.performance import measure_router_share
from exitlens.delivery.benchmark import (
    AS_IS,
    MIXED,
    TUNED,
    Bench,
    Plain,
    Planned,
    StepTimes,
    compare,
    list_exit_shares,
    measure_peak_bytes,
    pin_threads,
    plan_exits,
    tabulate,
    time_calls,
)
from tests.conftest import TinyNet, make_net


def test_a_change_of_memory_is_warmed_up_for(monkeypatch):
    monkeypatch.setattr("exitlens.delivery.benchmark.keep_memory", lambda kept: kept)
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


def test_compare_takes_turns_and_gives_the_ratio():
    calls = []
    speed = compare(lambda x: calls.append("a"), lambda x: calls.append("b"), [(torch.zeros(2),)] * 3, rounds=2)
    assert calls.count("a") == calls.count("b") == 12  # the first batch is run once more in each round
    assert (speed["batch_size"], speed["images"], speed["rounds"]) == (2, 6, 2)
    assert speed["low"] <= speed["speedup"] <= speed["high"]


@pytest.mark.slow
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
    assert len(tabulate(found)) == len(names) + 1
    few = bench.run(2, rounds=1, seconds=0, memory=False, keep=lambda name: "80/20" in name)
    assert {row["name"] for row in few["rows"]} == {AS_IS, TUNED, "exits, 80/20", "exits, 80/20, whole batches"}


def test_plans_have_the_shares():
    assert plan_exits((0.5, 0.3, 0, 0.2), 40).bincount().tolist() == [20, 12, 0, 8]
    assert plan_exits((0.5, 0.3, 0, 0.2), 8).bincount().tolist() == [4, 2, 0, 2]
    assert plan_exits((0, 0, 0, 1), 3).tolist() == [3, 3, 3]
    assert plan_exits((1, 1), 40).diff().unique().tolist() == [-1, 0, 1]  # in random order
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


@pytest.mark.slow
def test_on_onnx_runtime_both_sides_are(images):
    pytest.importorskip("onnxruntime")
    plain, net = TinyNet().eval(), make_net()
    net.tuning = xl.Tuning(micro_batch=4, backend="onnx")
    rival = Plain(plain, images, net.tuning)
    assert torch.allclose(rival.body(images)[0], plain(images), atol=1e-5)
    rival(images)
    assert 0 < measure_router_share(net, images[:16], runs=2)[0] < 1
