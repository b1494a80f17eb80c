"""What a promise with a probability may be broken in."""

import pytest

from benchmarks.guarantees.promises import allow, list_promises, pool_worst


def test_two_standard_errors_are_allowed():
    assert allow(0.1, 900) == pytest.approx(0.1 + 2 * 0.01)


def test_the_worst_limit_counts():
    row = {"delta": 0.1, "violations": 0.05, "draws": 100}
    sets = {"accuracy drop": {"a": row, "b": {**row, "violations": 0.2}}}
    promise = next(list_promises("splits-x", {"sets": sets}))
    assert promise.measured == 0.2
    assert not promise.is_kept


def test_draws_of_all_populations_are_counted_together():
    def rows(*broken: float) -> dict[str, dict[str, float]]:
        pairs = [(n, v, d) for n, v in zip((0.01, 0.02), broken, strict=True) for d in (0.05, 0.1, 0.2)]
        return {f"{n}, {d}": {"limit": n, "delta": d, "violations": v, "draws": 300} for n, v, d in pairs}

    sets = {"population 0, missed labels": rows(0.1, 0.0), "population 1, missed labels": rows(0.0, 0.04)}
    assert pool_worst(sets, "missed labels", 0.1) == pytest.approx(0.05)
    found = list(list_promises("labels", {"sets": sets, "draws": 600}))
    assert [promise.is_kept for promise in found[-3:]] == [True, True, True]


def test_groups_that_are_not_named_have_to_break_promises():
    def row(broken: float) -> dict[str, dict[str, float]]:
        return {"a": {"delta": 0.1, "violations": broken, "draws": 333}}

    sets = {"x, named, accuracy drop": row(0.05), "x, not named, accuracy drop": row(0.4)}
    assert all(promise.is_kept for promise in list_promises("groups", {"sets": sets}))
    for worse in ({"x, named, accuracy drop": row(0.2)}, {"x, not named, accuracy drop": row(0.1)}):
        assert sum(not promise.is_kept for promise in list_promises("groups", {"sets": sets | worse})) == 1


def test_families_are_told_apart_from_independent_samples():
    orders = {"as they come": {"warned": True}, "shuffled": {"warned": False}}
    calm = {"as they come": {"warned": False}, "shuffled": {"warned": False}}
    found = {"scenes": {"independent, test": calm, "41 garments": orders}, "seconds_taken": 3}
    assert all(promise.is_kept for promise in list_promises("families", found))
    found["scenes"]["independent, test"] = orders
    assert [promise.is_kept for promise in list_promises("families", found)] == [False, True]
