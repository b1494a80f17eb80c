"""Which figures are judged."""

from benchmarks.traces.promises import list_promises


def test_the_largest_gap_of_the_compact_form_counts():
    found = {"largest_gap": {"compact": {"margin": 1e-3, "entropy": 0.0}, "full in float32": {"margin": 1.0}}}
    gap, routes = list_promises("agreement", found | {"exits_that_differ": 0.0})
    assert gap.measured == 1e-3
    assert not gap.is_kept
    assert routes.is_kept


def test_memory_is_that_above_few_samples():
    assert [p.measured for p in list_promises("collecting", {"2000": {"peak_mb": 400}, "20000": {"peak_mb": 650}})] == [250]
    steps = {step: {"peak_mb": 1900} for step in ("calibrate", "certify", "evaluate")}
    assert [promise.is_kept for promise in list_promises("million", steps)] == [True] * 3
