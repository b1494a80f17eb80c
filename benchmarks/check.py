"""Prints every promise about speed and guarantees beside its committed figure; exit code 1 for a miss that is not listed as known.

Usage: python -m benchmarks.check [benchmarks/results]
Known misses, each with its reason, are in benchmarks/known_misses.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study import promises as study_promises

HERE = Path(__file__).parent
MIXED = "50/30/0/20"


class Bar(NamedTuple):
    """A promise: ``key`` names it for the list of known misses."""

    key: str
    what: str
    figure: float
    sense: str
    limit: float

    @property
    def is_kept(self) -> bool:
        return self.figure <= self.limit if self.sense == "<=" else self.figure >= self.limit


def bars(part: str, found: dict[str, Any]) -> Iterator[Bar]:
    """The bars that one part (network and threads) has figures for."""
    for batch in found["batches"]:
        size = batch["batch"]
        rows = {row["name"]: row for row in batch["rows"]}
        at = f"{part}, batch {size}"
        for form in ("", ", compiled"):
            if f"nobody_over_plain{form}" in batch:
                figure = batch[f"nobody_over_plain{form}"][0]
                yield Bar(f"nobody{form}|{part}|{size}", f"{at}: nobody leaves{form}, time over plain", figure, "<=", 1.04)
        if size >= 8:
            yield from _savings(part, size, rows)
        if size == 1 and "exits, all at exit 0" in rows:
            row = rows.get("exits, all at exit 0, compiled", rows["exits, all at exit 0"])
            best = max(row["efficiency"][0], rows["exits, all at exit 0"]["efficiency"][0])
            yield Bar(f"exit0|{part}", f"{at}: all leave at exit 0, of what the stage allows", best, ">=", 0.95)
        if "attention_over_none" in batch:
            figure = batch["attention_over_none"][0]
            yield Bar(f"attention|{part}|{size}", f"{at}: attention of every exit, time over without", figure, "<=", 1.02)
        for key, figure in batch.items():
            if key.startswith("compiled_over_eager"):
                name = key.removeprefix("compiled_over_eager, ")
                yield Bar(f"compiled|{name}|{part}|{size}", f"{at}: {name}, compiled over eager", figure[0], "<=", 1.0)
        yield from _against(part, size, rows)
    if part.startswith("resnet18"):
        yield Bar(f"router|{part}", f"{part}, batch 32: the router's own time", found["router_share"][0], "<=", 0.01)
    if "stream" in found:
        yield Bar(f"stream|{part}", f"{part}: stream over batch by batch of 8", found["stream"]["gain"][0], ">=", 1.15)
    if "decisions" in found:
        same = found["decisions"]
        yield Bar(f"decisions|{part}", f"{part}: compiled decides as eager, share of 10,000", same["equal"], ">=", 0.9999)
        far = same["furthest_from_threshold"]
        yield Bar(f"near|{part}", f"{part}: furthest of the others from its threshold", far, "<=", 1e-4)


def memory(path: Path) -> Iterator[Bar]:
    """What a process that answers a stream and does nothing else holds, at the end over after a fifth of it."""
    beside = path.parent / "memory" / path.name
    if beside.exists():
        found = json.loads(beside.read_text())["resident_mb"]
        what = f"{path.stem}: memory at the end of a stream over a fifth of it, process of its own"
        yield Bar(f"memory|{path.stem}", what, found[-1] / found[0], "<=", 1.05)


def _savings(part: str, size: int, rows: dict[str, Any]) -> Iterator[Bar]:
    """Measured saving over ideal saving, of the faster form."""
    for shares in (MIXED, "40/30/20/10", "all at exit 0"):
        names = [name for name in (f"exits, {shares}", f"exits, {shares}, compiled") if "saving" in rows.get(name, {})]
        if names:
            fastest = min(names, key=lambda name: rows[name]["ms"][0])
            form = "compiled" if fastest.endswith("compiled") else "eager"
            what = f"{part}, batch {size}: {shares}, saving over ideal saving ({form}, the faster)"
            yield Bar(f"saving|{shares}|{part}|{size}", what, rows[fastest]["saving"][0], ">=", 0.95)


def _against(part: str, size: int, rows: dict[str, Any]) -> Iterator[Bar]:
    """Against the plain backbone and earlyon."""
    mixed = rows.get(f"exits, {MIXED}")
    if mixed is None:
        return
    if part.startswith("resnet50") and size == 32:
        what = f"{part}, batch 32: {MIXED}, times faster than plain"
        yield Bar(f"plain|{part}", f"{what} as PyTorch runs it", mixed["speedup"][0], ">=", 2.4)
        yield Bar(f"tuned|{part}", f"{what} with the same tuning", mixed["speedup_tuned"][0], ">=", 1.6)
    for form in ("", ", same formats"):
        other = rows.get(f"earlyon, {MIXED}{form}")
        if other is not None and size in (1, 32):
            what = f"{part}, batch {size}: {MIXED}, times earlyon's throughput{form or ', as it comes'}"
            limit = 1.0 if size == 1 else 2.2
            yield Bar(f"earlyon{form}|{part}|{size}", what, other["ms"][0] / mixed["ms"][0], ">=", limit)


def guarantees(part: str, found: dict[str, Any]) -> Iterator[Bar]:
    """The bars of docs/guarantees.md that one part has figures for."""
    kind = part.partition("-")[0]
    if kind in ("splits", "synthetic"):
        for label, rows in found["sets"].items():
            for delta in sorted({row["delta"] for row in rows}):
                most = max(row["violations"] for row in rows if row["delta"] == delta)
                limit = delta + 2 * (delta * (1 - delta) / rows[0]["draws"]) ** 0.5
                yield Bar(
                    f"violations|{part}|{label}|{delta}",
                    f"{part}: {label}, delta {delta}: promises broken",
                    most,
                    "<=",
                    limit,
                )
    if kind == "synthetic":
        broken, delta = found["broken"], 0.1
        most = max(row["violations"] for rows in broken["sets"].values() for row in rows if row["delta"] == delta)
        limit = delta + 2 * (delta * (1 - delta) / (broken["draws"] / 3)) ** 0.5
        yield Bar("broken", "one step too far, delta 0.1: promises broken (has to be caught)", most, ">=", limit)
    if kind == "saving":
        shares = dict(found["share_of_hindsight"])
        ours = shares.pop("ours")
        yield Bar(f"hindsight|{part}", f"{part}: saving over hindsight's", ours, ">=", 0.85)
        for name in [name for name in shares if name.startswith("single")]:
            yield Bar(f"baseline|{name}|{part}", f"{part}: saving over {name}'s", ours - shares[name], ">=", 0.0)
    if kind == "gate":
        change = max(row["cost_change"] for row in found["rows"])
        yield Bar(f"gate|{part}", f"{part}: change of cost at equal limits, the least of all limits", change, "<=", 0.0)
    if kind == "drift":
        for key, one in found.items():
            if isinstance(one, dict) and "warned" in one:
                yield Bar(f"drift|{key}", f"drift {key}: warned within 500 samples", one["warned"], ">=", 0.95)
        alarms = found["unchanged, 10,000 samples"]["alarms"]
        yield Bar("drift|false", "drift: false alarms in 10,000 samples, share of runs", alarms, "<=", 0.05)
    if kind == "time":
        yield Bar(
            "time",
            "50,000 samples, 4 exits, 3 risks: seconds on one core",
            sorted(found["seconds"])[len(found["seconds"]) // 2],
            "<=",
            2,
        )
        yield Bar("time|memory", "the same: MB of the whole process", found["peak_mb_of_the_process"], "<=", 1000)


def explorer(found: dict[str, Any]) -> Iterator[Bar]:
    """How long a visitor of the explorer waits."""
    if "first_answer_s" in found:
        what = "explorer: first page, answered, seconds after the bundle is loaded"
        yield Bar("explorer|page", what, found["first_answer_s"][0], "<=", 5)
    for title, one in found["explained"].items():
        what = f"explorer: {title}, ms that explaining adds to the network's own on one core"
        yield Bar(f"explorer|{title}", what, one["explain_beyond_network"][0], "<=", 150)


def study(folder: Path) -> Iterator[Bar]:
    """The study's promises; those that compare conditions say which."""
    for promise in study_promises.bars(folder):
        what = f"{promise.what} [{promise.track}]" if promise.track else promise.what
        yield Bar(promise.key, what, promise.figure, promise.sense, promise.limit)


def all_bars(folder: Path) -> Iterator[Bar]:
    """Of every committed result."""
    for path in sorted((folder / "performance").glob("*.json")):
        yield from bars(path.stem, json.loads(path.read_text()))
        yield from memory(path)
    for path in sorted((folder / "guarantees").glob("*.json")):
        yield from guarantees(path.stem, json.loads(path.read_text()))
    if (folder / "explorer.json").exists():
        yield from explorer(json.loads((folder / "explorer.json").read_text()))
    if (folder / "study").is_dir() and not study_promises.missing(folder / "study"):
        yield from study(folder / "study")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "results")
    known: dict[str, str] = json.loads((HERE / "known_misses.json").read_text())
    failed, used = 0, set()
    left = study_promises.missing(folder / "study") if (folder / "study").is_dir() else []
    if left:
        print(f"the study lacks {len(left)} runs: its promises are not judged yet (docs/results.md has them so far)")
    found = list(all_bars(folder))
    if not found:
        print(f"no results in {folder}: run make bench")
        return 1
    for bar in found:
        reason = next((text for key, text in known.items() if fnmatch(bar.key, key)), None)
        used |= {key for key in known if not bar.is_kept and fnmatch(bar.key, key)}
        word = "ok     " if bar.is_kept else "known  " if reason else "MISSED "
        failed += not bar.is_kept and reason is None
        print(f"{word} {bar.what:88} {bar.figure:9.4g} {bar.sense} {bar.limit:.4g}")
    for key in sorted(used):
        print(f"known miss {key}: {known[key]}")
    if left:  # what is not judged is neither kept nor missed
        used |= {key for key in known if key.startswith("study|")}
    for key in sorted(set(known) - used):
        print(f"not missed any more, take it off the list: {key}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
