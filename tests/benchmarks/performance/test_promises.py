"""Which promises a run has figures for."""

from benchmarks.performance.promises import list_memory_promises, list_promises


def test_savings_are_of_the_faster_form():
    rows = {
        "exits, all at exit 0": {"ms": [2.0], "saving": [0.9], "efficiency": [0.8]},
        "exits, all at exit 0, compiled": {"ms": [1.0], "saving": [0.97], "efficiency": [0.9]},
    }
    found = {promise.key: promise for promise in list_promises("x-1", {"batches": {"8": {"rows": rows}}})}
    assert found["saving|all at exit 0|x-1|8"].measured == 0.97
    assert "(compiled, the faster)" in found["saving|all at exit 0|x-1|8"].what


def test_memory_is_compared_with_the_first_fifth():
    promise = next(list_memory_promises("x-1", {"resident_mb": [100.0, 101.0, 104.0]}))
    assert promise.measured == 1.04
    assert promise.is_kept
