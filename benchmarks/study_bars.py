"""What the study promises, as (key, what, figure, sense, limit); means over seeds, differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from exitlens.functional.quality import area_under_curve

Rows = dict[str, dict[int, dict[str, Any]]]  # condition -> seed -> what study_run.run found
Row = tuple[str, str, float, str, float]
SEEDS = 5
METHOD, BASE, PLAIN, AVERAGE, DISTILLED = "egt", "joint", "plain", "average", "distilled"


def load_runs(folder: Path, data: str) -> Rows:
    """All runs of one data set."""
    rows: Rows = {}
    for path in sorted((folder / data).glob("*.json")):
        key, _, seed = path.stem.rpartition("-")
        rows.setdefault(key, {})[int(seed)] = json.loads(path.read_text())
    return rows


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its t-interval; infinite for one value."""
    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def over_seeds(rows: Rows, condition: str, pick: Callable[[dict[str, Any]], float]) -> list[float]:
    return [pick(found) for _, found in sorted(rows[condition].items())]


def paired(rows: Rows, first: str, second: str, pick: Callable[[dict[str, Any]], float]) -> list[float]:
    """Differences of the seeds that both have."""
    seeds = sorted(rows[first].keys() & rows[second].keys())
    return [pick(rows[first][seed]) - pick(rows[second][seed]) for seed in seeds]


def accuracy(exit_index: int, test: str = "") -> Callable[[dict[str, Any]], float]:
    """In points; the first test set if none is named."""

    def pick(found: dict[str, Any]) -> float:
        tests = found["tests"]
        return float(100 * tests[test or next(iter(tests))]["accuracy"][exit_index])

    return pick


def consistency(
    measure: str, field: str, exit_index: int | None = None, test: str = ""
) -> Callable[[dict[str, Any]], float]:
    """Of one early exit, or the mean over the early exits."""

    def pick(found: dict[str, Any]) -> float:
        tests = found["tests"]
        early = [row[field] for row in tests[test or next(iter(tests))]["consistency"][measure][:-1]]
        return float(mean(early) if exit_index is None else early[exit_index])

    return pick


def faithful(measure: str, exit_index: int) -> Callable[[dict[str, Any]], float]:
    """A faithfulness measure of one exit; deletion against random cells."""

    def pick(found: dict[str, Any]) -> float:
        table = found["faithfulness"]
        value = float(table[measure][exit_index])
        return value - float(table["deletion_random"][exit_index]) if measure == "deletion" else value

    return pick


def seeds_done(folder: Path) -> int:
    """How many seeds of the scenes have every condition that a promise compares; 5 make the study complete."""
    rows = load_runs(folder, "scenes")
    needed = (
        METHOD,
        "both",
        BASE,
        PLAIN,
        AVERAGE,
        DISTILLED,
        "permuted",
        "permuted-evidence",
        "egt-evidence",
        "static-25",
        "static-50",
    )
    return min(len(rows.get(key, {})) for key in needed)


def bars(folder: Path) -> Iterator[Row]:
    """Of every data set that has the runs for them."""
    scenes = load_runs(folder, "scenes")
    if METHOD in scenes and BASE in scenes:
        yield from _agreement(scenes)
        yield from _accuracy(scenes)
        yield from _against_distillation(scenes)
        yield from _area(scenes)
        yield from _faithfulness(scenes)
        yield from _controls(scenes)
    small = load_runs(folder, "small")
    if METHOD in small and BASE in small:
        yield from _small(small)
    yield from _speed(folder)


def _agreement(rows: Rows) -> Iterator[Row]:
    skill = [mean(over_seeds(rows, METHOD, consistency("cc", "skill", k))) for k in (0, None)]
    yield "study|skill0", "scenes: attention CC skill, exit 0", skill[0], ">=", 0.8
    yield "study|skill", "scenes: attention CC skill, mean over early exits", skill[1], ">=", 0.9
    kl = [mean(over_seeds(rows, c, consistency("kl", "value"))) for c in (METHOD, BASE)]
    yield "study|kl", "scenes: KL to the final map, over that without EGT (c)", kl[0] / kl[1], "<=", 0.06
    cosine = [mean(over_seeds(rows, c, consistency("cosine", "value"))) for c in (METHOD, BASE)]
    yield "study|cosine", "scenes: raw cosine consistency", cosine[0], ">=", 0.94
    yield "study|cosine+", "scenes: raw cosine consistency, gain over (c) in %", 100 * (cosine[0] / cosine[1] - 1), ">=", 100


def _accuracy(rows: Rows) -> Iterator[Row]:
    for test, gain in (("agreeing", 4), ("disagreeing", 18)):
        gained = mean(paired(rows, METHOD, BASE, accuracy(0, test)))
        yield f"study|exit0|{test}", f"scenes, {test}: points gained at exit 0 over (c)", gained, ">=", gain
        for other, letter in ((PLAIN, "a"), (BASE, "c")):
            if other not in rows:
                continue
            middle, half = interval(paired(rows, METHOD, other, accuracy(-1, test)))
            what = f"scenes, {test}: final exit against ({letter}), lower end of the 95 % interval, points"
            yield f"study|final|{letter}|{test}", what, middle - half, ">=", -0.3


def _against_distillation(rows: Rows) -> Iterator[Row]:
    if DISTILLED not in rows:
        return
    gained = mean(paired(rows, METHOD, DISTILLED, accuracy(0, "disagreeing")))
    yield "study|distilled", "scenes, disagreeing: points at exit 0 over self-distillation (e)", gained, ">=", 3
    if "both" in rows:
        for test in ("agreeing", "disagreeing"):
            best = max(mean(over_seeds(rows, c, accuracy(0, test))) for c in (METHOD, DISTILLED))
            ours = mean(over_seeds(rows, "both", accuracy(0, test)))
            yield (
                f"study|both|{test}",
                f"scenes, {test}: (h) over the better of EGT and (e), exit 0, points",
                ours - best,
                ">=",
                0,
            )


def static_area(rows: Rows) -> list[float]:
    """(i): of the plain backbone and the narrower ones together, one area a seed."""
    keys = ("static-25", "static-50", PLAIN)
    seeds = sorted(set.intersection(*(set(rows.get(key, {})) for key in keys)))
    areas = []
    for seed in seeds:
        found = {key: rows[key][seed] for key in keys}
        points = [(one["macs"] / found[PLAIN]["macs"], accuracy(-1)(one) / 100) for one in found.values()]
        areas.append(area_under_curve(points, guess=found[PLAIN]["guess"]))
    return areas


def _area(rows: Rows) -> Iterator[Row]:
    areas = {c: mean(over_seeds(rows, c, lambda found: found["area"])) for c in rows if not c.startswith("static")}
    static = static_area(rows)
    others = [value for c, value in areas.items() if c not in (METHOD, "both")] + ([mean(static)] if static else [])
    ours = max(areas[c] for c in (METHOD, "both") if c in areas)
    yield "study|area", "scenes: area under accuracy-cost over the best other condition's", ours - max(others), ">=", 0


def _faithfulness(rows: Rows) -> Iterator[Row]:
    for k in range(3):
        for other, letter in ((AVERAGE, "b"), (BASE, "c")):
            if other in rows:
                gain = mean(paired(rows, METHOD, other, faithful("deletion", k)))
                what = f"scenes: deletion drop over random cells, exit {k}, gain over ({letter})"
                yield f"study|deletion|{k}|{letter}", what, gain, ">=", 0
    final = [mean(over_seeds(rows, c, faithful("deletion", -1))) for c in (METHOD, BASE)]
    yield (
        "study|deletion|final",
        "scenes: deletion drop over random cells, final exit, over (c)'s",
        final[0] / final[1],
        ">=",
        0.9,
    )
    least = mean(over_seeds(rows, BASE, faithful("energy_in_mask", -1)))
    for k in range(4):
        energy = mean(over_seeds(rows, METHOD, faithful("energy_in_mask", k)))
        yield (
            f"study|energy|{k}|c",
            f"scenes: energy in the mask, exit {k}, minus (c)'s final exit's",
            energy - least,
            ">=",
            0,
        )
        if AVERAGE in rows:
            gain = mean(paired(rows, METHOD, AVERAGE, faithful("energy_in_mask", k)))
            yield f"study|energy|{k}|b", f"scenes: energy in the mask, exit {k}, gain over (b)", gain, ">=", 0


def _controls(rows: Rows) -> Iterator[Row]:
    for ours, control, heads in ((METHOD, "permuted", "context"), ("egt-evidence", "permuted-evidence", "evidence")):
        if control not in rows or ours not in rows:
            continue
        picks = {
            "skill": consistency("cc", "skill", 0),
            "agreeing accuracy": accuracy(0, "agreeing"),
            "disagreeing accuracy": accuracy(0, "disagreeing"),
        }
        for name, pick in picks.items():
            middle, half = interval(paired(rows, ours, control, pick))
            what = f"scenes, {heads} heads: EGT over permuted maps, exit 0, {name}, lower end"
            yield f"study|permuted|{heads}|{name}", what, middle - half, ">=", 0


def _small(rows: Rows) -> Iterator[Row]:
    picks = {
        "skill": consistency("cc", "skill"),
        "agreeing accuracy at exit 0": accuracy(0, "agreeing"),
        "disagreeing accuracy at exit 0": accuracy(0, "disagreeing"),
    }
    for name, pick in picks.items():
        middle, half = interval(paired(rows, METHOD, BASE, pick))
        yield (
            f"study|small|{name}",
            f"small data: gain over (c) in {name}, lower end of the interval",
            middle - half,
            ">=",
            0,
        )


def _speed(folder: Path) -> Iterator[Row]:
    for data, limit in (("scenes", 2), ("fashion", 3)):
        found = [json.loads(path.read_text()) for path in sorted((folder / "speed").glob(f"{data}-*.json"))]
        if found:
            times = mean(one["speed"]["speedup"] for one in found)
            yield f"study|speed|{data}", f"{data}: times faster than (a), batch 64", times, ">=", limit
            lost = mean(100 * one["accuracy_drop"] for one in found)
            yield f"study|lost|{data}", f"{data}: points lost to (a) at that speed", lost, "<=", 0.3
