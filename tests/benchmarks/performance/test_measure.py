"""What was timed is kept by name, and streams by hand."""

import torch

import exitlens as xl
from benchmarks.performance.measure import name_rows, name_tunings
from benchmarks.performance.streams import choose_shares, read_resident_memory
from benchmarks.store import flatten


def test_rows_and_tunings_get_names():
    found = name_rows({"batch": 8, "samples": 64, "rows": [{"name": "plain", "ms": [1.0, 0.9, 1.1]}]})
    assert found == {"samples": 64, "rows": {"plain": {"ms": [1.0, 0.9, 1.1]}}}
    tuning = name_tunings({"micro_batch": 8, "measured": {"cores": 2, "ms_per_sample": [{"ms": 1.0}, {"ms": 2.0}]}})
    assert tuning["measured"]["ms_per_sample"]["1"] == {"ms": 2.0}
    assert len(list(flatten({**found, "tuning": tuning}))) == 8


def test_thresholds_for_shares_give_these_shares(net, images):
    policy = choose_shares(net, images, (0.5, 0.25, 0.25))
    assert xl.predict(net, images, policy).exits.bincount(minlength=3).tolist() == [20, 10, 10]


def test_memory_is_read_after_each_fifth():
    exits = torch.zeros(8, dtype=torch.long)
    pred = xl.Prediction(exits, exits, torch.zeros(8), torch.zeros(8, 2))
    found = read_resident_memory(lambda count: (pred for _ in range(count // 8)), 80)
    assert len(found) == 5
    assert min(found) > 10
