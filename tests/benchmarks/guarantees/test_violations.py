"""Broken promises are counted right: on a population whose risks are known."""

import itertools

from benchmarks.guarantees.savings import choose_single_thresholds
from benchmarks.guarantees.violations import (
    DELTAS,
    LABEL_SETS,
    LIMITS,
    SETS,
    count_one_draw,
    count_one_labels_draw,
    summarise,
)
from tests.conftest import random_trace


def test_a_draw_has_a_row_for_every_set_limit_and_delta():
    found = count_one_draw(False, 1)
    assert set(found) == {f"population 1, {label}" for label in SETS}
    for rows in found.values():
        assert len(rows) == 12
        assert {tuple(row[:2]) for row in rows} == set(itertools.product(LIMITS, DELTAS))


def test_a_draw_of_several_labels_likewise():
    found = count_one_labels_draw(False, 1)
    assert set(found) == {f"population 1, {label}" for label in LABEL_SETS}
    assert all(len(rows) == 12 for rows in found.values())


def test_outcomes_are_averaged_by_limit_and_delta():
    found = summarise([{"x": [[0.01, 0.1, 1.0, 0.5]]}, {"x": [[0.01, 0.1, 0.0, 1.0]]}, {"y": [[0.02, 0.1, 0.0, 0.2]]}])
    expected = {"limit": 0.01, "delta": 0.1, "violations": 0.5, "cost": 0.75, "never": 0.5, "draws": 2}
    assert found["x"] == {"limit 0.01, delta 0.1": expected}
    assert found["y"]["limit 0.02, delta 0.1"]["draws"] == 1


def test_single_thresholds_in_expectation_go_further_than_certified_ones():
    found = choose_single_thresholds(random_trace(2000), 0.05, 0.1)
    thresholds = {name: policy.thresholds[0] for name, policy in found.items()}
    assert min(thresholds, key=thresholds.get) == "single threshold, CRC (in expectation only)"
    assert all(len(set(policy.thresholds)) == 1 and 0 < policy.thresholds[0] < 1 for policy in found.values())
