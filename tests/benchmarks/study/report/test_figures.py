"""Figures over seeds."""

import pytest
from scipy import stats

from benchmarks.study.report.figures import find_static_areas, interval, load_rows, pair
from benchmarks.study.runs import study_store


def test_intervals_are_students():
    values = [1.0, 2.0, 4.0, 3.5]
    middle, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=middle, scale=stats.sem(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert interval([1.0]) == (1.0, float("inf"))


def test_differences_are_of_the_seeds_that_both_have():
    rows = {"a": {0: {"x": 1.0}, 1: {"x": 2.0}, 2: {"x": 9.0}}, "b": {1: {"x": 0.5}, 0: {"x": 0.0}}}
    assert pair(rows, "a", "b", lambda found: found["x"]) == [1.0, 1.5]
    assert pair(rows, "a", "b", lambda found: found["x"], lambda found: 0.0) == [1.0, 2.0]


def test_static_networks_cost_what_they_cost(tmp_path):
    store = study_store(tmp_path / "study.csv", tmp_path)
    for key, macs, accuracy in (("plain", 100, 0.9), ("static-50", 50, 0.8), ("static-25", 25, 0.6), ("static-10", 10, 0.5)):
        found = {"macs": macs, "cost": [1.0], "area": 0.5, "guess": 0.1, "tests": {"t": {"accuracy": [accuracy]}}}
        store.add(f"scenes/{key}-0", found)
    store.fold()
    rows = load_rows(store, "scenes")
    assert rows["static-25"][0]["cost"] == [0.25]
    by_hand = (0.15 * (0.5 + 0.6) / 2 + 0.25 * 0.7 + 0.5 * 0.85) / 0.9
    assert find_static_areas(rows) == {0: pytest.approx(by_hand)}
    assert store.read()["scenes/static-25-0"]["cost"] == [1.0]  # what the store keeps is not changed
