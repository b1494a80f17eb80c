"""Turns the JSON files of earlier commits into the CSV files, and proves that every value can be had back from them.

Usage: python -m benchmarks.convert_results [write|compare]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.performance.runs import PERFORMANCE
from benchmarks.store import GUARANTEES
from benchmarks.study.runs import STUDY

OLD = Path("benchmarks/results")


def old_runs(kind: str) -> dict[str, Path]:
    runs = {}
    for path in sorted((OLD / kind).rglob("*.json")):
        name = path.relative_to(OLD / kind).with_suffix("").as_posix().replace("memory/", "memory-")
        if name != "trials":
            runs[name] = path
    return runs


def transpose(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    assert all(list(row) == list(rows[0]) for row in rows)
    return {key: [row[key] for row in rows] for key in rows[0]}


def untranspose(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def key_by(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    keyed = {str(row[name]): {k: v for k, v in row.items() if k != name} for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def count_up(rows: list[Any]) -> dict[str, Any]:
    return {str(i): row for i, row in enumerate(rows)}


def label(row: dict[str, Any]) -> str:
    return f"limit {row['limit']}, delta {row['delta']}"


# --- study -------------------------------------------------------------------------------------------------------------------


def study(name: str, old: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if name.startswith("speed/"):
        new["rows"] = key_by(old["rows"], "policy")
    if "tests" not in old:
        return new
    new["tests"] = {test: dict(found) for test, found in old["tests"].items()}
    for found in new["tests"].values():
        found["overthinking"] = dict(zip(("wasteful", "destructive"), found["overthinking"], strict=True))
        found["consistency"] = {m: transpose(rows) for m, rows in found["consistency"].items()}
    for curve in ("curve", "common"):
        new[curve] = {"cost": [p[0] for p in old[curve]], "accuracy": [p[1] for p in old[curve]]}
    return new


def unstudy(name: str, new: dict[str, Any]) -> dict[str, Any]:
    old = dict(new)
    if name.startswith("speed/"):
        old["rows"] = [{"policy": policy, **row} for policy, row in new["rows"].items()]
    if "tests" not in new:
        return old
    old["tests"] = {test: dict(found) for test, found in new["tests"].items()}
    for found in old["tests"].values():
        found["overthinking"] = list(found["overthinking"].values())
        found["consistency"] = {m: untranspose(columns) for m, columns in found["consistency"].items()}
    for curve in ("curve", "common"):
        old[curve] = [list(point) for point in zip(new[curve]["cost"], new[curve]["accuracy"], strict=True)]
    return old


# --- performance -------------------------------------------------------------------------------------------------------------


def tuning(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "measured": {**old["measured"], "ms_per_sample": count_up(old["measured"]["ms_per_sample"])}}


def untuning(new: dict[str, Any]) -> dict[str, Any]:
    return {**new, "measured": {**new["measured"], "ms_per_sample": list(new["measured"]["ms_per_sample"].values())}}


def batch(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "rows": key_by(old["rows"], "name")}


def unbatch(new: dict[str, Any]) -> dict[str, Any]:
    return {**new, "rows": [{"name": name, **row} for name, row in new["rows"].items()]}


def performance(name: str, old: dict[str, Any]) -> dict[str, Any]:
    if name.startswith("memory-"):
        return old
    new = {**old, "tuning": tuning(old["tuning"]), "bfloat16": batch(old["bfloat16"])}
    new["bfloat16"]["tuning"] = tuning(new["bfloat16"]["tuning"])
    new["batches"] = key_by([batch(one) for one in old["batches"]], "batch")
    return new


def unperformance(name: str, new: dict[str, Any]) -> dict[str, Any]:
    if name.startswith("memory-"):
        return new
    old = {**new, "tuning": untuning(new["tuning"]), "bfloat16": unbatch(new["bfloat16"])}
    old["bfloat16"]["tuning"] = untuning(old["bfloat16"]["tuning"])
    old["batches"] = [unbatch({"batch": int(size), **one}) for size, one in new["batches"].items()]
    return old


# --- guarantees --------------------------------------------------------------------------------------------------------------


def sets(old: dict[str, Any]) -> dict[str, Any]:
    return {name: {label(row): row for row in rows} for name, rows in old.items()}


def unsets(new: dict[str, Any]) -> dict[str, Any]:
    return {name: list(rows.values()) for name, rows in new.items()}


def guarantees(name: str, old: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if "sets" in old:
        new["sets"] = sets(old["sets"])
    if "broken" in old and "sets" in old["broken"]:
        new["broken"] = {**old["broken"], "sets": sets(old["broken"]["sets"])}
    if name.startswith("gate-"):
        new["rows"] = dict(zip(("0.2", "0.4", "0.6", "0.8"), old["rows"], strict=True))
    return new


def unguarantees(name: str, new: dict[str, Any]) -> dict[str, Any]:
    old = dict(new)
    if "sets" in new:
        old["sets"] = unsets(new["sets"])
    if "broken" in new and "sets" in new["broken"]:
        old["broken"] = {**new["broken"], "sets": unsets(new["broken"]["sets"])}
    if name.startswith("gate-"):
        old["rows"] = list(new["rows"].values())
    return old


WAYS = {
    "study": (STUDY, study, unstudy),
    "performance": (PERFORMANCE, performance, unperformance),
    "guarantees": (GUARANTEES, guarantees, unguarantees),
}


def count(tree: Any) -> int:
    if isinstance(tree, dict | list) and tree:
        return sum(count(v) for v in (tree.values() if isinstance(tree, dict) else tree))
    return 1


def main() -> None:
    for kind, (store, there, back) in WAYS.items():
        if "write" in sys.argv:
            store.path.unlink(missing_ok=True)
            shutil.rmtree(store.runs, ignore_errors=True)
            for name, path in old_runs(kind).items():
                store.add(name, there(name, json.loads(path.read_text())))
            store.fold()
        if "compare" in sys.argv:
            new, old = store.read(), old_runs(kind)
            assert set(new) == set(old), set(new) ^ set(old)
            values = 0
            for name, path in old.items():
                before = json.dumps(json.loads(path.read_text()), sort_keys=True)
                assert json.dumps(back(name, new[name]), sort_keys=True) == before, name
                values += count(json.loads(before))
            print(f"{kind}: {len(old)} files, {values:,} values, all equal; {store.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
