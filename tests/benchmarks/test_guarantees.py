"""Broken promises are counted right, on populations whose risks are known, and may be broken as often as they say."""

import itertools

import pytest
import torch

from benchmarks import guarantees, populations
from tests.conftest import random_trace


@pytest.mark.slow
@pytest.mark.parametrize(("population", "sets"), [("synthetic", guarantees.SETS), ("labels", guarantees.LABEL_SETS)])
def test_a_draw_has_a_row_for_every_set_limit_and_delta(population, sets):
    outcome = guarantees.count_one_draw(population, 0, 1)
    assert set(outcome) == {f"population 1, {label}" for label in sets}
    for rows in outcome.values():
        assert {tuple(row[:2]) for row in rows} == set(itertools.product(guarantees.LIMITS, guarantees.DELTAS))


def test_outcomes_are_averaged_by_limit_and_delta():
    rows = [{"x": [[0.01, 0.1, 1.0, 0.5]]}, {"x": [[0.01, 0.1, 0.0, 1.0]]}, {"y": [[0.02, 0.1, 0.0, 0.2]]}]
    summary = guarantees.summarise(rows)
    expected = {"limit": 0.01, "delta": 0.1, "violations": 0.5, "cost": 0.75, "draws": 2}
    assert summary["x"] == {"limit 0.01, delta 0.1": expected}
    assert summary["y"]["limit 0.02, delta 0.1"]["draws"] == 1


def test_single_thresholds_in_expectation_go_further_than_certified_ones():
    policies = guarantees.choose_single_thresholds(random_trace(2000), 0.05, 0.1)
    thresholds = {name: policy.thresholds[0] for name, policy in policies.items()}
    assert min(thresholds, key=thresholds.get) == "single threshold, CRC (in expectation only)"
    assert all(len(set(policy.thresholds)) == 1 and 0 < policy.thresholds[0] < 1 for policy in policies.values())


def test_groups_are_drawn_whole_and_may_come_twice():
    trace = populations.recall_trace("groups-1")
    rows, drawn = populations.draw_groups(trace, 50, torch.Generator().manual_seed(0))
    for draw in range(50):
        samples = rows[drawn == draw]
        (group,) = trace.groups[samples].unique().tolist()
        assert torch.equal(samples, (trace.groups == group).nonzero().flatten())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_a_draw_of_groups_is_judged_in_every_way_and_watched():
    outcome, modes = guarantees.count_one_group_draw(2), guarantees.MODES.items()
    names = {f"{guarantees.GROUP_KINDS[2]}, {mode}, {label}" for mode, labels in modes for label in labels}
    assert set(outcome) == names
    for rows in outcome.values():
        assert {tuple(row[:2]) for row in rows} == set(itertools.product(guarantees.GROUP_LIMITS, guarantees.DELTAS))
        assert all(0.2 - 1e-6 <= cost <= 1 for *_, cost in rows)
    assert guarantees.watch_groups(False, 2) in (True, False)


@pytest.mark.slow
def test_seeds_run_side_by_side():
    assert populations.run_in_parallel(divmod, 7, seeds=[2, 3]) == [(3, 1), (2, 1)]


def judge(**runs):
    return [promise.state for promise in guarantees.list_promises(runs)]


def test_the_worst_limit_counts():
    row = {"delta": 0.1, "violations": 0.05, "draws": 100}
    sets = {"accuracy drop": {"a": row, "b": {**row, "violations": 0.2}}}
    (promise,) = guarantees.list_promises({"splits-x": {"sets": sets}})
    assert (promise.measured, promise.state) == (0.2, "missed")


@pytest.mark.parametrize(("named", "not_named", "missed"), [(0.05, 0.4, 0), (0.2, 0.4, 1), (0.05, 0.1, 1)])
def test_groups_that_are_not_named_have_to_break_promises(named, not_named, missed):
    rows = {f"x, {mode}, accuracy drop": share for mode, share in (("named", named), ("not named", not_named))}
    sets = {label: {"a": {"delta": 0.1, "violations": share, "draws": 333}} for label, share in rows.items()}
    assert judge(groups={"sets": sets}).count("missed") == missed
    assert judge(groups={"sets": sets}).count("kept") == 2 - missed


def test_families_are_told_apart_from_independent_samples():
    orders = {"as they come": {"warned": True}, "shuffled": {"warned": False}}
    calm = {"as they come": {"warned": False}, "shuffled": {"warned": False}}
    assert judge(families={"independent, test": calm, "41 garments": orders}) == ["kept", "kept"]
    assert judge(families={"independent, test": orders, "41 garments": orders}) == ["missed", "kept"]
