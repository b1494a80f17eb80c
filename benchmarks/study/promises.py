"""What the study promises, each beside its figure; means over seeds, differences paired by seed.

Every promise is judged three times: as it was planned (our exits, neck and loss together, against evidence heads without it), and
with the heads alike, so that what the neck does is not taken for what the loss does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.study.conditions import CONDITIONS, FOR, SEEDS, SWEPT, weights
from exitlens.functional.quality import area_under_curve

Rows = dict[str, dict[int, dict[str, Any]]]  # condition -> seed -> what study_run.run found
Pick = Callable[[dict[str, Any]], float]
PLAIN, AVERAGE = "plain", "average"


class Promise(NamedTuple):
    """``key`` names it for the list of known misses; ``half`` is half the width of the 95 % interval of a mean.

    Where the promise is about the lower end of an interval, ``note`` is that interval.
    """

    key: str
    what: str
    figure: float
    sense: str
    limit: float
    half: float | None = None
    note: str = ""
    track: str = ""  # which conditions were compared; none for promises that are judged once

    @property
    def is_kept(self) -> bool:
        return self.figure <= self.limit if self.sense == "<=" else self.figure >= self.limit

    @property
    def is_open(self) -> bool:
        """Whether the interval of the mean reaches over the bar: more seeds could turn the judgement."""
        return self.half is not None and abs(self.figure - self.limit) < self.half


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


def load_runs(folder: Path, data: str) -> Rows:
    """All runs of one data set."""
    rows: Rows = {}
    for path in sorted((folder / data).glob("*.json")):
        key, _, seed = path.stem.rpartition("-")
        rows.setdefault(key, {})[int(seed)] = json.loads(path.read_text())
    for key in [
        key for key in rows if key.startswith("static")
    ]:  # in units of the plain backbone of the seed, as all others
        for seed, found in rows[key].items():
            plain = rows.get(PLAIN, {}).get(seed)
            found["cost"] = [found["macs"] / plain["macs"]] if plain else [float("nan")]
            found["area"] = found["area_common"] = float("nan")  # one network is no curve: see static_area
    return rows


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its t-interval; infinite for one value."""
    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def _mean(key: str, what: str, values: list[float], sense: str, limit: float) -> Promise:
    """Of the mean over seeds."""
    middle, half = interval(values)
    return Promise(key, what, middle, sense, limit, None if half == float("inf") else half)


def _lower_end(key: str, what: str, values: list[float], limit: float) -> Promise:
    """Of the lower end of the interval, at least."""
    middle, half = interval(values)
    return Promise(key, f"{what}, lower end", middle - half, ">=", limit, note=f"({middle:.2g} ± {half:.2g})")


def over_seeds(rows: Rows, condition: str, pick: Pick) -> list[float]:
    return [pick(found) for _, found in sorted(rows[condition].items())]


def paired(rows: Rows, first: str, second: str, pick: Pick, of_second: Pick | None = None) -> list[float]:
    """Differences of the seeds that both have."""
    seeds = sorted(rows[first].keys() & rows[second].keys())
    return [pick(rows[first][seed]) - (of_second or pick)(rows[second][seed]) for seed in seeds]


def accuracy(exit_index: int, test: str = "") -> Pick:
    """In points; the first test set if none is named."""

    def pick(found: dict[str, Any]) -> float:
        tests = found["tests"]
        return float(100 * tests[test or next(iter(tests))]["accuracy"][exit_index])

    return pick


def consistency(measure: str, field: str, exit_index: int | None = None, test: str = "") -> Pick:
    """Of one early exit, or the mean over the early exits."""

    def pick(found: dict[str, Any]) -> float:
        tests = found["tests"]
        early = [row[field] for row in tests[test or next(iter(tests))]["consistency"][measure][:-1]]
        return float(mean(early) if exit_index is None else early[exit_index])

    return pick


def faithful(measure: str, exit_index: int) -> Pick:
    """A faithfulness measure of one exit; deletion against random cells."""

    def pick(found: dict[str, Any]) -> float:
        table = found["faithfulness"]
        value = float(table[measure][exit_index])
        return value - float(table["deletion_random"][exit_index]) if measure == "deletion" else value

    return pick


def area(found: dict[str, Any]) -> float:
    """Under the curve of one common threshold, in %: nothing about it was chosen."""
    return float(100 * found["area_common"])


def missing(folder: Path) -> list[str]:
    """Runs that the study lacks; the promises are judged when there is none."""
    return [name for name in planned() if not (folder / f"{name}.json").exists()]


def planned() -> list[str]:
    """All runs of the study."""
    names = [f"sweep/{loss}-{alpha:g}" for loss in SWEPT for alpha in weights(loss)]
    names += [f"{data}/{key}-{seed}" for data in FOR for key in FOR[data] for seed in range(SEEDS[data])]
    return names + [f"speed/{data}-{seed}" for data in ("scenes", "fashion") for seed in range(SEEDS[data])]


def bars(folder: Path) -> Iterator[Promise]:
    """All that there are runs for."""
    scenes, small = load_runs(folder, "scenes"), load_runs(folder, "small")
    for track in TRACKS:
        for promise in _of_track(scenes, small, track):
            yield promise._replace(key=f"study|{promise.key}|{track.name}", track=track.name)
    yield from _area(scenes)
    yield from _speed(folder)


def _of_track(scenes: Rows, small: Rows, track: Track) -> Iterator[Promise]:
    if _common(scenes, track.egt, track.base):
        yield from _agreement(scenes, track)
        yield from _accuracy(scenes, track)
        yield from _faithfulness(scenes, track)
    if _common(scenes, track.egt, track.distilled):
        yield from _against_distillation(scenes, track)
    if _common(scenes, track.egt, track.permuted):
        yield from _gains(scenes, track.egt, track.permuted, 0, "permuted", "scenes: EGT over permuted maps")
    if _common(small, track.egt, track.base):
        yield from _gains(small, track.egt, track.base, None, "small", "small data: gain over (c)")


def _common(rows: Rows, *keys: str) -> bool:
    """Whether there is a seed that all of these conditions have."""
    return bool(set.intersection(*(set(rows.get(key, {})) for key in keys)))


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
        gained = paired(rows, track.egt, track.base, accuracy(0, test))
        yield _mean(f"exit0|{test}", f"scenes, {test}: points gained at exit 0 over (c)", gained, ">=", gain)
        for other, letter in ((PLAIN, "a"), (track.base, "c")):
            if _common(rows, track.egt, other):
                values = paired(rows, track.egt, other, accuracy(-1, test))
                what = f"scenes, {test}: final exit against ({letter}), points"
                yield _lower_end(f"final|{letter}|{test}", what, values, -0.3)


def _against_distillation(rows: Rows, track: Track) -> Iterator[Promise]:
    gained = paired(rows, track.egt, track.distilled, accuracy(0, "disagreeing"))
    yield _mean("distilled", "scenes, disagreeing: points at exit 0 over self-distillation (e)", gained, ">=", 3)
    for test in ("agreeing", "disagreeing"):
        for other, name in ((track.egt, "EGT"), (track.distilled, "(e)")):
            if _common(rows, track.both, other):
                gained = paired(rows, track.both, other, accuracy(0, test))
                yield _mean(f"both|{name}|{test}", f"scenes, {test}: points at exit 0, (h) over {name}", gained, ">=", 0)


def static_area(rows: Rows) -> dict[int, float]:
    """(i): of the plain backbone and the narrower ones together, one area a seed."""
    keys = ("static-10", "static-25", "static-50", PLAIN)
    seeds = sorted(set.intersection(*(set(rows.get(key, {})) for key in keys)))
    areas = {}
    for seed in seeds:
        found = {key: rows[key][seed] for key in keys}
        points = [(one["macs"] / found[PLAIN]["macs"], accuracy(-1)(one) / 100) for one in found.values()]
        areas[seed] = area_under_curve(points, guess=found[PLAIN]["guess"], hull=False)
    return areas


def _area(rows: Rows) -> Iterator[Promise]:
    if "egt" not in rows:
        return
    for other in rows:
        if not other.startswith("static") and other not in ("egt", PLAIN) and _common(rows, "egt", other):
            gained = paired(rows, "egt", other, area)
            what = f"scenes: area under accuracy-cost, EGT over {CONDITIONS[other].title}, points"
            yield _mean(f"study|area|{other}", what, gained, ">=", 0)
    static = static_area(rows)
    if seeds := sorted(static.keys() & rows["egt"].keys()):
        gained = [100 * (rows["egt"][seed]["area_common"] - static[seed]) for seed in seeds]
        yield _mean(
            "study|area|static", "scenes: area under accuracy-cost, EGT over static networks (i), points", gained, ">=", 0
        )


def _faithfulness(rows: Rows, track: Track) -> Iterator[Promise]:
    others = [(o, letter) for o, letter in ((AVERAGE, "b"), (track.base, "c")) if _common(rows, track.egt, o)]
    for k in range(3):
        for other, letter in others:
            gain = paired(rows, track.egt, other, faithful("deletion", k))
            what = f"scenes: deletion drop over random cells, exit {k}, gain over ({letter})"
            yield _mean(f"deletion|{k}|{letter}", what, gain, ">=", 0)
    final = [mean(over_seeds(rows, c, faithful("deletion", -1))) for c in (track.egt, track.base)]
    what = "scenes: deletion drop over random cells, final exit over (c)'s"
    yield Promise("deletion|final", what, final[0] / final[1], ">=", 0.9)
    for k in range(4):
        energy = paired(rows, track.egt, track.base, faithful("energy_in_mask", k), faithful("energy_in_mask", -1))
        yield _mean(f"energy|{k}|c", f"scenes: energy in the mask, exit {k}, minus (c)'s final exit's", energy, ">=", 0)
        if AVERAGE in rows:
            gain = paired(rows, track.egt, AVERAGE, faithful("energy_in_mask", k))
            yield _mean(f"energy|{k}|b", f"scenes: energy in the mask, exit {k}, gain over (b)", gain, ">=", 0)


def _gains(rows: Rows, ours: str, other: str, exit_index: int | None, key: str, what: str) -> Iterator[Promise]:
    """Lower ends of the 95 % intervals of what consistency and exit 0 gain."""
    picks = {
        "skill": consistency("cc", "skill", exit_index),
        "exit 0, agreeing": accuracy(0, "agreeing"),
        "exit 0, disagreeing": accuracy(0, "disagreeing"),
    }
    for name, pick in picks.items():
        yield _lower_end(f"{key}|{name}", f"{what}, {name}", paired(rows, ours, other, pick), 0)


def _speed(folder: Path) -> Iterator[Promise]:
    ways = {
        "clock": ("", "batch 64", ""),
        "clock, stream": (", stream", "a stream of batches of 64", " (added after Fashion-MNIST's miss)"),
    }
    for data, limit in (("scenes", 2), ("fashion", 3)):
        found = [json.loads(path.read_text()) for path in sorted((folder / "speed").glob(f"{data}-*.json"))]
        for policy, (key, how, later) in ways.items():
            rows = [row for one in found for row in one["rows"] if row["policy"] == policy]
            if rows:
                times = [row["speed"]["speedup"] for row in rows]
                what = f"{data}: times faster than (a), {how}, thresholds by the clock{later}"
                yield _mean(f"study|speed|{data}{key}", what, times, ">=", limit)
                lost = [100 * row["accuracy_drop"] for row in rows]
                yield _mean(
                    f"study|lost|{data}{key}", f"{data}: points lost to (a) at that speed{key}{later}", lost, "<=", 0.3
                )
