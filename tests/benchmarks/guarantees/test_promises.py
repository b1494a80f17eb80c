"""What a promise with a probability may be broken in."""

import pytest

from benchmarks.guarantees.promises import allow, list_promises


def test_two_standard_errors_are_allowed():
    assert allow(0.1, 900) == pytest.approx(0.1 + 2 * 0.01)


def test_the_worst_limit_counts():
    row = {"delta": 0.1, "violations": 0.05, "draws": 100}
    sets = {"accuracy drop": {"a": row, "b": {**row, "violations": 0.2}}}
    promise = next(list_promises("splits-x", {"sets": sets}))
    assert promise.measured == 0.2
    assert not promise.is_kept
