"""The study's promises see what got worse."""

import copy

import pytest

from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.report.figures import interval
from benchmarks.study.report.promises import TRACKS, list_promises
from benchmarks.study.runs import STUDY, study_store


def test_what_got_worse_is_seen(tmp_path):
    good, store = STUDY.read()["scenes/egt-0"], study_store(tmp_path / "study.csv", tmp_path)
    for seed in (0, 1):
        for key in ("egt", "joint", "plain", "distilled"):
            found = copy.deepcopy(good)
            if key in ("joint", "plain"):
                far = found["tests"]["disagreeing"]
                far["accuracy"] = [value - 0.2 - 0.01 * seed for value in far["accuracy"]]
            store.add(f"scenes/{key}-{seed}", found)
    store.fold()
    figures = {promise.key: (promise.measured, promise.bar) for promise in list_promises(store)}
    own = "neck and EGT"
    assert figures[f"study|exit0|disagreeing|{own}"] == (pytest.approx(20.5), 18)
    assert figures[f"study|final|c|agreeing|{own}"][0] == pytest.approx(0)
    middle, half = interval([20.0, 21.0])
    assert figures[f"study|final|a|disagreeing|{own}"][0] == pytest.approx(middle - half)
    assert figures[f"study|distilled|{own}"][0] == pytest.approx(0)
    assert figures[f"study|kl|{own}"][0] == pytest.approx(1)
    assert not any(key.endswith("evidence heads alike") for key in figures)  # nothing to compare with there


def test_heads_are_alike_where_the_promise_says_so():
    heads = {track.name: {CONDITIONS[key].head for key in track[1:]} for track in TRACKS}
    assert heads["context heads alike"] == {"context"}
    assert heads["evidence heads alike"] == {"evidence"}


def test_batches_and_streams_are_promises_of_their_own(tmp_path):
    store = study_store(tmp_path / "study.csv", tmp_path)
    for seed, (alone, streamed) in enumerate(((2.4, 3.1), (2.6, 3.3))):
        times = {"clock": (alone, 0.002), "clock, stream": (streamed, 0.004), "0.005, certified": (9.0, 0.0)}
        rows = {name: {"speed": {"speedup": x}, "accuracy_drop": lost} for name, (x, lost) in times.items()}
        store.add(f"speed/fashion-{seed}", {"rows": rows})
    store.fold()
    found = {promise.key.removeprefix("study|"): promise for promise in list_promises(store)}
    kept = {"speed|fashion": False, "lost|fashion": True, "speed|fashion, stream": True, "lost|fashion, stream": False}
    assert {key: promise.is_kept for key, promise in found.items()} == kept
    assert found["speed|fashion"].measured == pytest.approx(2.5)
    assert found["lost|fashion, stream"].measured == pytest.approx(0.4)
