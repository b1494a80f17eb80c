import os

import torch

from exitlens.delivery.bench.timing import compare, measure_peak_bytes, pin_threads, time_calls


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


def test_compare_takes_turns_and_gives_the_ratio():
    calls = []
    speed = compare(lambda x: calls.append("a"), lambda x: calls.append("b"), [(torch.zeros(2),)] * 3, rounds=2)
    assert calls.count("a") == calls.count("b") == 12  # the first batch is run once more in each round
    assert speed.images == 6
    assert speed.low <= speed.speedup <= speed.high
