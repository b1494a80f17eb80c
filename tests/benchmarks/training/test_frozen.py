"""That the benchmark of frozen backbones runs, and what it promises."""

from benchmarks.training.frozen import Case, measure
from benchmarks.training.promises import list_promises


def test_a_tiny_case_is_measured_and_judged():
    found = measure(Case("small", 32, samples=64, validation=16), rounds=1)
    assert found["furthest_weight"] < 1e-3
    assert found["kb_a_sample"] > 0
    assert len(found["speedup"]) == 3
    faster, equal = list_promises("small", found | {"speedup": [12.0, 11.0, 13.0]})
    assert faster.is_kept
    assert equal.is_kept
