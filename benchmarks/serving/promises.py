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
    what = f"{found['samples']:,} images from {found['connections']} connections"
    others = found["differing"] - found["differing_near"] + found["unanswered"]
    yield Promise("serving|answers", f"{what}: other labels or exits than predict's, or no answer", others, "<=", 0)
    yield Promise("serving|scores", f"{what}: furthest score", found["score_gap"], "<=", 1e-5)


def _of_faults(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    at = name.replace("_", " ")
    for key in ("lost", "wrong"):
        yield Promise(f"serving|{name}|{key}", f"{at}, under load: requests {key}", found[key], "<=", 0)
    if name != "terminate":
        unready = sum(count for code, count in found["ready_codes"].items() if code != "200")
        yield Promise(f"serving|{name}|ready", f"{at}: looks at readiness that found it unready", unready, "<=", 0)


def _of_overload(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    at, over, memory = f"{name}, three times as much as it bears for a minute", found["overload"], found["memory_mb"]
    grown, late = memory["peak"] - memory["before"], over["accepted_p99_ms"] / found["limit_ms"]
    recovery = found["recovery_seconds"]
    yield Promise(f"serving|overload|{name}|memory", f"{at}: megabytes more", grown, "<=", 200)
    yield Promise(f"serving|overload|{name}|p99", f"{at}: p99 of the accepted over the limit", late, "<=", 2)
    yield Promise(f"serving|overload|{name}|other", f"{at}: neither answered nor refused", over["others"], "<=", 0)
    well = 99.0 if recovery is None else recovery
    yield Promise(f"serving|overload|{name}|recovery", f"{at}: seconds until all is well again", well, "<=", 2)


def _of_hostile(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    refused = sum(count for code, count in found["by_outcome"].items() if code.startswith("4") or code == "closed")
    what = f"{found['count']:,} hostile requests: neither a 4xx with its reason nor, where they end it themselves, closed"
    without = found["count"] - refused + len(found["kinds_without_reason"])
    yield Promise("serving|hostile|bad", what, without, "<=", 0)
    good = found["beside_failures"] + found["beside_wrong"]
    yield Promise("serving|hostile|good", "good requests beside them: lost or wrong", good, "<=", 0)
