"""What the engine and the explorer promise about time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise

MIXED = "50/30/0/20"


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one run (network and threads) has figures for."""
    for size, batch in found["batches"].items():
        yield from _of_batch(run, int(size), batch)
    if run.startswith("resnet18"):
        yield Promise(f"router|{run}", f"{run}, batch 32: the router's own time", found["router_share"][0], "<=", 0.01)
    if "stream" in found:
        yield Promise(f"stream|{run}", f"{run}: stream over batch by batch of 8", found["stream"]["gain"][0], ">=", 1.15)
    if "decisions" in found:
        same = found["decisions"]
        yield Promise(f"decisions|{run}", f"{run}: compiled decides as eager, share of 10,000", same["equal"], ">=", 0.9999)
        far = same["furthest_from_threshold"]
        yield Promise(f"near|{run}", f"{run}: furthest of the others from its threshold", far, "<=", 1e-4)


def _of_batch(run: str, size: int, batch: dict[str, Any]) -> Iterator[Promise]:
    rows, at = batch["rows"], f"{run}, batch {size}"
    for form in ("", ", compiled"):
        if f"nobody_over_plain{form}" in batch:
            figure = batch[f"nobody_over_plain{form}"][0]
            yield Promise(f"nobody{form}|{run}|{size}", f"{at}: nobody leaves{form}, time over plain", figure, "<=", 1.04)
    if size >= 8:
        yield from _savings(run, size, rows)
    if size == 1 and "exits, all at exit 0" in rows:
        eager = rows["exits, all at exit 0"]["efficiency"][0]
        best = max(rows.get("exits, all at exit 0, compiled", rows["exits, all at exit 0"])["efficiency"][0], eager)
        yield Promise(f"exit0|{run}", f"{at}: all leave at exit 0, of what the stage allows", best, ">=", 0.95)
    if "attention_over_none" in batch:
        figure = batch["attention_over_none"][0]
        yield Promise(f"attention|{run}|{size}", f"{at}: attention of every exit, time over without", figure, "<=", 1.02)
    for key, figures in batch.items():
        if key.startswith("compiled_over_eager"):
            name = key.removeprefix("compiled_over_eager, ")
            yield Promise(f"compiled|{name}|{run}|{size}", f"{at}: {name}, compiled over eager", figures[0], "<=", 1.0)
    yield from _against(run, size, rows)


def _savings(run: str, size: int, rows: dict[str, Any]) -> Iterator[Promise]:
    """Measured saving over ideal saving, of the faster form."""
    for shares in (MIXED, "40/30/20/10", "all at exit 0"):
        names = [name for name in (f"exits, {shares}", f"exits, {shares}, compiled") if "saving" in rows.get(name, {})]
        if names:
            fastest = min(names, key=lambda name: rows[name]["ms"][0])
            form = "compiled" if fastest.endswith("compiled") else "eager"
            what = f"{run}, batch {size}: {shares}, saving over ideal saving ({form}, the faster)"
            yield Promise(f"saving|{shares}|{run}|{size}", what, rows[fastest]["saving"][0], ">=", 0.95)


def _against(run: str, size: int, rows: dict[str, Any]) -> Iterator[Promise]:
    """Against the plain backbone and earlyon."""
    mixed = rows.get(f"exits, {MIXED}")
    if mixed is None:
        return
    if run.startswith("resnet50") and size == 32:
        what = f"{run}, batch 32: {MIXED}, times faster than plain"
        yield Promise(f"plain|{run}", f"{what} as PyTorch runs it", mixed["speedup"][0], ">=", 2.4)
        yield Promise(f"tuned|{run}", f"{what} with the same tuning", mixed["speedup_tuned"][0], ">=", 1.6)
    for form in ("", ", same formats"):
        other = rows.get(f"earlyon, {MIXED}{form}")
        if other is not None and size in (1, 32):
            what = f"{run}, batch {size}: {MIXED}, times earlyon's throughput{form or ', as it comes'}"
            bar = 1.0 if size == 1 else 2.2
            yield Promise(f"earlyon{form}|{run}|{size}", what, other["ms"][0] / mixed["ms"][0], ">=", bar)


def list_memory_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """What a process that answers a stream and does nothing else holds, at the end over after a fifth of it."""
    held = found["resident_mb"]
    what = f"{run}: memory at the end of a stream over a fifth of it, process of its own"
    yield Promise(f"memory|{run}", what, held[-1] / held[0], "<=", 1.05)


def list_explorer_promises(found: dict[str, Any]) -> Iterator[Promise]:
    """How long a visitor of the explorer waits."""
    if "first_answer_s" in found:
        what = "explorer: first page, answered, seconds after the bundle is loaded"
        yield Promise("explorer|page", what, found["first_answer_s"][0], "<=", 5)
    for title, one in found["explained"].items():
        what = f"explorer: {title}, ms that explaining adds to the network's own on one core"
        yield Promise(f"explorer|{title}", what, one["explain_beyond_network"][0], "<=", 150)
