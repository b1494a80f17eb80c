"""What serving promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.promises import Promise

RIVALS = {"plain": "the plain backbone in the same server", "litserve": "it in LitServe", "ray": "it in Ray Serve"}


def list_promises(run: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    """Those of one run."""
    kind, _, name = run.partition("-")
    listing = {
        "throughput": _of_throughput,
        "overhead": _of_overhead,
        "leavers": _of_leavers,
        "answers": _of_answers,
        "faults": _of_faults,
        "overload": _of_overload,
        "hostile": _of_hostile,
    }
    if kind in listing:
        yield from listing[kind](name, found)


def _of_throughput(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    ours = found["exits"]["samples_a_second"]
    for rival, words in RIVALS.items():
        if rival in found:
            what = f"{name}: requests a second in time, times those of {words}"
            yield Promise(f"serving|{name}|{rival}", what, ours / found[rival]["samples_a_second"], ">=", 2.0)


def _of_overhead(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    yield Promise(
        "serving|overhead", "one request at a time: milliseconds above predict's own", found["above_ms"], "<=", 2.0
    )


def _of_leavers(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    what = f"{name}: at 70 % load, p50 of who leaves at exit 0 over that of the final exit"
    yield Promise(f"serving|leavers|{name}", what, found["ratio"], "<=", 0.5)


def _of_answers(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    what = f"{found['samples']:,} images from 32 connections"
    yield Promise("serving|answers", f"{what}: other labels or exits than predict's", found["others"], "<=", 0)
    yield Promise("serving|scores", f"{what}: furthest score", found["score_gap"], "<=", 1e-5)


def _of_faults(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    for key in ("lost", "wrong", "unready"):
        if key in found:
            yield Promise(f"serving|{name}|{key}", f"{name.replace('_', ' ')}: {key}", found[key], "<=", 0)


def _of_overload(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    at = f"{name}, three times as much as it bears for a minute"
    yield Promise(f"serving|overload|{name}|memory", f"{at}: megabytes more", found["memory_growth_mb"], "<=", 200)
    yield Promise(
        f"serving|overload|{name}|p99", f"{at}: p99 of the accepted over the limit", found["p99_over_limit"], "<=", 2
    )
    yield Promise(
        f"serving|overload|{name}|other", f"{at}: neither answered nor refused by 429 or 503", found["others"], "<=", 0
    )
    yield Promise(
        f"serving|overload|{name}|recovery", f"{at}: seconds until all is well again", found["recovery_s"], "<=", 2
    )


def _of_hostile(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    yield Promise(
        "serving|hostile|bad", "1,000 hostile requests: without a 4xx that says why", found["not_refused"], "<=", 0
    )
    yield Promise("serving|hostile|good", "good requests beside them: lost or wrong", found["good_disturbed"], "<=", 0)
