from __future__ import annotations

from benchmarks.pictures.promises import list_promises


def pairs(*points: float) -> dict:
    return {f"pair-{seed}": {"difference": point / 100, "error": 0.01} for seed, point in enumerate(points)}


def test_the_mean_over_seeds_is_judged():
    (kept,) = list_promises(pairs(-0.9, 0.6, 0.0))
    assert kept.measured == -0.1 or abs(kept.measured + 0.1) < 1e-9
    assert kept.is_kept
    (missed,) = list_promises(pairs(-0.9, -0.6, 0.0))
    assert not missed.is_kept


def test_what_is_not_measured_is_not_judged():
    assert not list(list_promises(pairs(1.0, 1.0)))
    (step,) = list_promises({"step-0": {"ratio": [1.2, 1.1, 1.3]}})
    assert not step.is_kept
