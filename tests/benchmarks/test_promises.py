"""One promise: kept or missed, open or not, and why."""

from dataclasses import replace

from benchmarks import promises
from benchmarks.promises import Promise, add_reasons

PROMISE = Promise("a", "what", 1.0, ">=", 0.5, half=0.4)


def test_kept_and_open():
    assert PROMISE.is_kept
    assert not replace(PROMISE, sense="<=").is_kept
    assert replace(PROMISE, measured=0.5).is_kept
    assert not PROMISE.is_open
    assert replace(PROMISE, measured=0.4).is_open
    assert not replace(PROMISE, measured=0.4, half=None).is_open


def test_a_line_says_whether_it_is_kept_known_or_missed():
    assert str(PROMISE).split() == ["ok", "what", "1", ">=", "0.5"]
    missed = replace(PROMISE, measured=0.1, track="x")
    assert str(missed).split() == ["MISSED", "what", "[x]", "0.1", ">=", "0.5"]
    assert str(replace(missed, reason="for this")).startswith("known ")


def test_reasons_are_of_the_first_pattern_that_fits(monkeypatch):
    monkeypatch.setattr(promises, "read_known_misses", lambda: {"a*": "first", "*": "second"})
    found = add_reasons([PROMISE, replace(PROMISE, key="b")])
    assert [promise.reason for promise in found] == ["first", "second"]
