"""What the study promises, each beside its figure: means over seeds, differences paired by seed.

Every promise is judged three times: as it was planned (our exits, neck and loss together, against evidence heads without it), and
with the heads alike, so that what the neck does is not taken for what the loss does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import mean
from typing import NamedTuple

from benchmarks.promises import Promise
from benchmarks.store import Store
from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.report.figures import (
    AVERAGE,
    PLAIN,
    Rows,
    accuracy,
    area,
    consistency,
    faithfulness,
    find_static_areas,
    interval,
    load_rows,
    over_seeds,
    pair,
    share_seed,
)


class Track(NamedTuple):
    """Which conditions are compared."""

    name: str
    egt: str
    both: str
    base: str
    distilled: str
    permuted: str


TRACKS = (
    Track("neck and EGT", "egt", "both", "joint", "distilled", "permuted"),
    Track("context heads alike", "egt", "both", "joint-context", "distilled-context", "permuted"),
    Track("evidence heads alike", "egt-evidence", "both-evidence", "joint", "distilled", "permuted-evidence"),
)


def _mean(key: str, what: str, values: list[float], sense: str, limit: float) -> Promise:
    """Of the mean over seeds."""
    middle, half = interval(values)
    return Promise(key, what, middle, sense, limit, None if half == float("inf") else half)


def _lower_end(key: str, what: str, values: list[float], limit: float) -> Promise:
    """Of the lower end of the interval, at least."""
    middle, half = interval(values)
    return Promise(key, f"{what}, lower end", middle - half, ">=", limit, note=f"({middle:.2g} ± {half:.2g})")


def list_promises(store: Store) -> Iterator[Promise]:
    """All that there are runs for."""
    scenes, small = load_rows(store, "scenes"), load_rows(store, "small")
    for track in TRACKS:
        for promise in _of_track(scenes, small, track):
            yield replace(promise, key=f"study|{promise.key}|{track.name}", track=track.name)
    yield from _area(scenes)
    yield from _speed(store)


def _of_track(scenes: Rows, small: Rows, track: Track) -> Iterator[Promise]:
    if share_seed(scenes, track.egt, track.base):
        yield from _agreement(scenes, track)
        yield from _accuracy(scenes, track)
        yield from _faithfulness(scenes, track)
    if share_seed(scenes, track.egt, track.distilled):
        yield from _against_distillation(scenes, track)
    if share_seed(scenes, track.egt, track.permuted):
        yield from _gains(scenes, track.egt, track.permuted, 0, "permuted", "scenes: EGT over permuted maps")
    if share_seed(small, track.egt, track.base):
        yield from _gains(small, track.egt, track.base, None, "small", "small data: gain over (c)")


def _agreement(rows: Rows, track: Track) -> Iterator[Promise]:
    def ours(measure: str, field: str, exit_index: int | None = None) -> list[float]:
        return over_seeds(rows, track.egt, consistency(measure, field, exit_index))

    yield _mean("skill0", "scenes: attention CC skill, exit 0", ours("cc", "skill", 0), ">=", 0.8)
    yield _mean("skill", "scenes: attention CC skill, mean over early exits", ours("cc", "skill"), ">=", 0.9)
    kl, cosine = ours("kl", "value"), ours("cosine", "value")
    theirs = [mean(over_seeds(rows, track.base, consistency(m, "value"))) for m in ("kl", "cosine")]
    yield Promise("kl", "scenes: KL to the final map, over (c)'s", mean(kl) / theirs[0], "<=", 0.06)
    yield _mean("cosine", "scenes: raw cosine consistency", cosine, ">=", 0.94)
    gain = 100 * (mean(cosine) / theirs[1] - 1)
    yield Promise("cosine+", "scenes: raw cosine consistency, gain over (c), %", gain, ">=", 100)


def _accuracy(rows: Rows, track: Track) -> Iterator[Promise]:
    for test, gain in (("agreeing", 4), ("disagreeing", 18)):
        gained = pair(rows, track.egt, track.base, accuracy(0, test))
        yield _mean(f"exit0|{test}", f"scenes, {test}: points gained at exit 0 over (c)", gained, ">=", gain)
        for other, letter in ((PLAIN, "a"), (track.base, "c")):
            if share_seed(rows, track.egt, other):
                values = pair(rows, track.egt, other, accuracy(-1, test))
                what = f"scenes, {test}: final exit against ({letter}), points"
                yield _lower_end(f"final|{letter}|{test}", what, values, -0.3)


def _against_distillation(rows: Rows, track: Track) -> Iterator[Promise]:
    gained = pair(rows, track.egt, track.distilled, accuracy(0, "disagreeing"))
    yield _mean("distilled", "scenes, disagreeing: points at exit 0 over self-distillation (e)", gained, ">=", 3)
    for test in ("agreeing", "disagreeing"):
        for other, name in ((track.egt, "EGT"), (track.distilled, "(e)")):
            if share_seed(rows, track.both, other):
                gained = pair(rows, track.both, other, accuracy(0, test))
                yield _mean(f"both|{name}|{test}", f"scenes, {test}: points at exit 0, (h) over {name}", gained, ">=", 0)


def _area(rows: Rows) -> Iterator[Promise]:
    if "egt" not in rows:
        return
    for other in rows:
        if not other.startswith("static") and other not in ("egt", PLAIN) and share_seed(rows, "egt", other):
            gained = pair(rows, "egt", other, area)
            what = f"scenes: area under accuracy-cost, EGT over {CONDITIONS[other].title}, points"
            yield _mean(f"study|area|{other}", what, gained, ">=", 0)
    static = find_static_areas(rows)
    if seeds := sorted(static.keys() & rows["egt"].keys()):
        gained = [100 * (rows["egt"][seed]["area_common"] - static[seed]) for seed in seeds]
        yield _mean(
            "study|area|static", "scenes: area under accuracy-cost, EGT over static networks (i), points", gained, ">=", 0
        )


def _faithfulness(rows: Rows, track: Track) -> Iterator[Promise]:
    others = [(o, letter) for o, letter in ((AVERAGE, "b"), (track.base, "c")) if share_seed(rows, track.egt, o)]
    for k in range(3):
        for other, letter in others:
            gain = pair(rows, track.egt, other, faithfulness("deletion", k))
            what = f"scenes: deletion drop over random cells, exit {k}, gain over ({letter})"
            yield _mean(f"deletion|{k}|{letter}", what, gain, ">=", 0)
    final = [mean(over_seeds(rows, c, faithfulness("deletion", -1))) for c in (track.egt, track.base)]
    what = "scenes: deletion drop over random cells, final exit over (c)'s"
    yield Promise("deletion|final", what, final[0] / final[1], ">=", 0.9)
    for k in range(4):
        energy = pair(rows, track.egt, track.base, faithfulness("energy_in_mask", k), faithfulness("energy_in_mask", -1))
        yield _mean(f"energy|{k}|c", f"scenes: energy in the mask, exit {k}, minus (c)'s final exit's", energy, ">=", 0)
        if AVERAGE in rows:
            gain = pair(rows, track.egt, AVERAGE, faithfulness("energy_in_mask", k))
            yield _mean(f"energy|{k}|b", f"scenes: energy in the mask, exit {k}, gain over (b)", gain, ">=", 0)


def _gains(rows: Rows, ours: str, other: str, exit_index: int | None, key: str, what: str) -> Iterator[Promise]:
    """Lower ends of the 95 % intervals of what consistency and exit 0 gain."""
    picks = {
        "skill": consistency("cc", "skill", exit_index),
        "exit 0, agreeing": accuracy(0, "agreeing"),
        "exit 0, disagreeing": accuracy(0, "disagreeing"),
    }
    for name, pick in picks.items():
        yield _lower_end(f"{key}|{name}", f"{what}, {name}", pair(rows, ours, other, pick), 0)


def _speed(store: Store) -> Iterator[Promise]:
    ways = {
        "clock": ("", "batch 64", ""),
        "clock, stream": (", stream", "a stream of batches of 64", " (added after Fashion-MNIST's miss)"),
    }
    for data, limit in (("scenes", 2), ("fashion", 3)):
        runs = load_rows(store, "speed").get(data, {}).values()
        for policy, (key, how, later) in ways.items():
            rows = [found["rows"][policy] for found in runs if policy in found["rows"]]
            if rows:
                times = [row["speed"]["speedup"] for row in rows]
                what = f"{data}: times faster than (a), {how}, thresholds by the clock{later}"
                yield _mean(f"study|speed|{data}{key}", what, times, ">=", limit)
                lost = [100 * row["accuracy_drop"] for row in rows]
                what = f"{data}: points lost to (a) at that speed{key}{later}"
                yield _mean(f"study|lost|{data}{key}", what, lost, "<=", 0.3)
