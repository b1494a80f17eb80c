import pytest
import torch
from scipy import stats

from exitlens.delivery.bench.timing import time_calls
from exitlens.model.timing import Times, describe_machine, interleave, interval


def test_interval_is_the_median_with_a_bootstrap_interval():
    values = [1.0, 5.0, 2.0, 9.0, 4.0, 4.5, 3.0, 2.5, 7.0]
    median = interval(values)
    assert median.median == 4.0
    expected = stats.bootstrap((values,), lambda x, axis: torch.tensor(x).quantile(0.5, axis).numpy(), method="percentile")
    assert median.low == pytest.approx(expected.confidence_interval.low, abs=0.6)
    assert median.high == pytest.approx(expected.confidence_interval.high, abs=0.6)
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


def test_a_machine_has_a_name_and_threads():
    machine = describe_machine(2)
    assert machine["threads"] == 2
    assert machine["processor"]
    assert describe_machine(0)["threads"] >= 1
