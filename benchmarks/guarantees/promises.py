"""The promises of docs/concepts/guarantees.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise

BROKEN_DELTA = 0.1


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one run has figures for."""
    kind = run.partition("-")[0]
    if kind in ("splits", "synthetic", "labels"):
        yield from _of_violations(run, found["sets"])
    of_kind = {
        "synthetic": _of_broken,
        "labels": _of_labels,
        "groups": _of_groups,
        "watch": _of_watched_groups,
        "families": _of_families,
        "saving": _of_saving,
        "gate": _of_gate,
        "drift": _of_drift,
        "time": _of_time,
    }
    if kind in of_kind:
        yield from of_kind[kind](run, found)


def allow(delta: float, draws: float) -> float:
    """What a promise kept with probability 1 - delta may be broken in, with two standard errors."""
    return delta + 2 * (delta * (1 - delta) / draws) ** 0.5


def _of_violations(run: str, sets: dict[str, Any]) -> Iterator[Promise]:
    for label, rows in sets.items():
        draws = next(iter(rows.values()))["draws"]
        for delta in sorted({row["delta"] for row in rows.values()}):
            most = max(row["violations"] for row in rows.values() if row["delta"] == delta)
            what = f"{run}: {label}, delta {delta}: promises broken"
            yield Promise(f"violations|{run}|{label}|{delta}", what, most, "<=", allow(delta, draws))


def _of_broken(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    broken = found["broken"]
    rows = [row for one in broken["sets"].values() for row in one.values()]
    most = max(row["violations"] for row in rows if row["delta"] == BROKEN_DELTA)
    what = f"one step too far, delta {BROKEN_DELTA}: promises broken (has to be caught)"
    yield Promise("broken", what, most, ">=", allow(BROKEN_DELTA, broken["draws"] / 3))


def pool_worst(sets: dict[str, Any], risks: str, delta: float) -> float:
    """The share of broken promises over the draws of all populations, at the worst limit."""
    rows = [
        row for label, one in sets.items() if label.endswith(f", {risks}") for row in one.values() if row["delta"] == delta
    ]
    limits = sorted({row["limit"] for row in rows})
    at = [[row for row in rows if row["limit"] == limit] for limit in limits]
    return max(sum(row["violations"] * row["draws"] for row in one) / sum(row["draws"] for row in one) for one in at)


def _of_labels(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    sets, draws = found["sets"], found["draws"]
    for risks in dict.fromkeys(label.partition(", ")[2] for label in sets):
        for delta in (0.05, BROKEN_DELTA, 0.2):
            what = f"labels: {risks}, delta {delta}: promises broken in {draws} calibrations"
            yield Promise(f"labels|{risks}|{delta}", what, pool_worst(sets, risks, delta), "<=", allow(delta, draws))


def _of_groups(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    named = {label: rows for label, rows in found["sets"].items() if "not named" not in label}
    yield from _of_violations("groups", named)
    others = [row for label, rows in found["sets"].items() if label not in named for row in rows.values()]
    broken = [row for row in others if row["delta"] == BROKEN_DELTA]
    most = max(row["violations"] for row in broken)
    what = f"groups not named, delta {BROKEN_DELTA}: promises broken (has to be caught)"
    yield Promise("groups not named", what, most, ">=", 2 * allow(BROKEN_DELTA, broken[0]["draws"]))


def _of_watched_groups(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    named, other = found["named"]["alarms"], found["not named"]["alarms"]
    yield Promise("watch|named", "drift on groups: false alarms, share of runs", named, "<=", allow(0.05, found["runs"]))
    yield Promise("watch|not named", "the same without naming them (has to be caught)", other, ">=", 0.5)


def _of_families(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    rows = [
        (f"{kind}, {name}", order, one)
        for kind, sets in found.items()
        if isinstance(sets, dict)
        for name, orders in sets.items()
        for order, one in orders.items()
    ]
    independent = [one for name, order, one in rows if "independent" in name or order == "shuffled"]
    families = [one for name, order, one in rows if "independent" not in name and order != "shuffled"]
    false, true = (sum(one["warned"] for one in group) / len(group) for group in (independent, families))
    yield Promise("families|false", "independent samples: share of sets warned of", false, "<=", 0.0)
    yield Promise("families|true", "families that lie side by side: share of sets warned of", true, ">=", 1.0)


def _of_saving(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    shares = dict(found["share_of_hindsight"])
    ours = shares.pop("ours")
    yield Promise(f"hindsight|{run}", f"{run}: saving over hindsight's", ours, ">=", 0.85)
    for name in [name for name in shares if name.startswith("single")]:
        yield Promise(f"baseline|{name}|{run}", f"{run}: saving over {name}'s", ours - shares[name], ">=", 0.0)


def _of_gate(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    change = max(row["cost_change"] for row in found["rows"].values())
    yield Promise(f"gate|{run}", f"{run}: change of cost at equal limits, the least of all limits", change, "<=", 0.0)


def _of_drift(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    for key, one in found.items():
        if isinstance(one, dict) and "warned" in one:
            yield Promise(f"drift|{key}", f"drift {key}: warned within 500 samples", one["warned"], ">=", 0.95)
    alarms = found["unchanged, 10,000 samples"]["alarms"]
    yield Promise("drift|false", "drift: false alarms in 10,000 samples, share of runs", alarms, "<=", 0.05)


def _of_time(_: str, found: dict[str, Any]) -> Iterator[Promise]:
    seconds = sorted(found["seconds"])
    yield Promise("time", "50,000 samples, 4 exits, 3 risks: seconds on one core", seconds[len(seconds) // 2], "<=", 2)
    yield Promise("time|memory", "the same: MB of the whole process", found["peak_mb_of_the_process"], "<=", 1000)
