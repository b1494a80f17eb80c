"""Writes docs/results.md and its plots from benchmarks/results/study. Run after study.py; no number is typed by hand."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from study_bars import (
    TRACKS,
    Pick,
    Promise,
    Rows,
    accuracy,
    bars,
    consistency,
    faithful,
    interval,
    load_runs,
    missing,
    over_seeds,
    paired,
    static_area,
)
from study_conditions import CONDITIONS, FOR, SEEDS, SWEPT, chosen
from study_plots import plot_curves, plot_sweep

ROOT = Path(__file__).parent.parent
WORDS = Path(__file__).parent / "study_words"
TITLES = {
    "scenes": "Scenes: 12,000 training images, backgrounds that tell the class in 80 % of them",
    "small": "Small data: 9 classes, 1,363 training and 1,364 test images",
    "digits": "Handwritten digits (scikit-learn)",
    "fashion": "Fashion-MNIST as it is: 60,000 / 10,000",
}


def show(values: Sequence[float], digits: int) -> str:
    """Mean and half width of the 95 % interval."""
    middle, half = interval(list(values))
    return f"{middle:.{digits}f}" if math.isinf(half) else f"{middle:.{digits}f} ± {half:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"] + [
        "| " + " | ".join(row) + " |" for row in rows
    ]


def ordered(rows: Rows) -> list[str]:
    return [key for key in CONDITIONS if key in rows]


def name_of(key: str) -> str:
    condition = CONDITIONS[key]
    return f"({condition.letter}) {condition.title}" if condition.letter else condition.title


def cells(rows: Rows, key: str, picks: Sequence[tuple[Pick | None, int]]) -> list[str]:
    found = []
    for pick, digits in picks:
        try:
            values = [] if pick is None else over_seeds(rows, key, pick)
            found.append("" if not values or any(v != v for v in values) else show(values, digits))
        except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError):
            found.append("")  # a plain network has no early exit, and no agreement
    return found


def early(pick: Pick) -> Pick:
    """Only of networks with early exits."""

    def only(found: dict[str, Any]) -> float:
        if len(found["cost"]) < 2:
            raise IndexError
        return pick(found)

    return only


def main_table(rows: Rows) -> list[str]:
    tests = list(next(iter(next(iter(rows.values())).values()))["tests"])
    head = ["condition", "seeds"]
    picks: list[tuple[Pick | None, int]] = []
    for test in tests:
        label = "" if len(tests) == 1 else f", {test}"
        head += [f"accuracy exit 0{label}, %", f"final{label}, %"]
        picks += [(early(accuracy(0, test)), 1), (accuracy(-1, test), 1)]
    head += ["skill exit 0", "skill, mean", "KL, mean", "cosine, mean", "area, %"]
    picks += [(early(consistency("cc", "skill", 0)), 2), (early(consistency("cc", "skill")), 2)]
    picks += [(early(consistency("kl", "value")), 2), (early(consistency("cosine", "value")), 2)]
    picks += [(lambda found: 100 * found["area"], 1)]
    lines = [[name_of(key), str(len(rows[key])), *cells(rows, key, picks)] for key in ordered(rows)]
    if areas := static_area(rows):
        shown = show([100 * area for area in areas], 1)
        lines.append(["(i) the plain and the static networks together", str(len(areas)), *[""] * (len(head) - 3), shown])
    return table(head, lines)


def faithfulness_table(rows: Rows) -> list[str]:
    head = ["condition", "exit", "deletion", "random cells", "insertion", "random cells", "after head randomisation, CC"]
    masks = next(iter(next(iter(rows.values())).values()))["faithfulness"]["energy_in_mask"] is not None
    head += ["energy in the object", "pointing game"] if masks else []
    lines = []
    for key in ordered(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            names = ["deletion_random", "insertion", "insertion_random", "randomised_cc"]
            names += ["energy_in_mask", "pointing_game"] if masks else []
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["faithfulness"]["deletion"][k], 3)]  # type: ignore[misc]
            picks += [(faithful(name, k), 3) for name in names]
            lines.append([name_of(key) if k == 0 else "", exit_name(k, count), *cells(rows, key, picks)])
    return table(head, lines)


def exit_name(k: int, count: int) -> str:
    return "final" if k == count - 1 else str(k)


def detail_table(rows: Rows) -> list[str]:
    """Every exit: accuracy, calibration, risk-coverage, and every consistency measure beside its nulls."""
    head = ["condition", "exit", "cost", "accuracy, %", "ECE", "Brier", "risk-coverage"]
    measures = ("cc", "cosine", "sim", "iou", "kl", "divergence")
    head += [f"{m} (shuffled / uniform)" for m in measures]
    lines = []
    for key in ordered(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["cost"][k], 3), (accuracy(k), 1)]  # type: ignore[misc]
            picks += [(_test_field(field, k), 3) for field in ("calibration_error", "brier", "risk_coverage")]
            row = [name_of(key) if k == 0 else "", exit_name(k, count), *cells(rows, key, picks)]
            lines.append(row + [_with_nulls(rows, key, m, k) if k < count - 1 else "" for m in measures])
    return table(head, lines)


def _test_field(field: str, k: int) -> Pick:
    return lambda found: float(next(iter(found["tests"].values()))[field][k])


def _with_nulls(rows: Rows, key: str, measure: str, k: int) -> str:
    value, null, uniform = (show(over_seeds(rows, key, consistency(measure, f, k)), 2) for f in ("value", "null", "uniform"))
    return f"{value} ({null.split(' ')[0]} / {uniform.split(' ')[0]})"


def routed_table(rows: Rows) -> list[str]:
    """What thresholds chosen on calibration data do on test data."""
    limits = ["0.0", "0.003", "0.005, certified", "0.01", "0.01, certified"]
    head = ["condition", *(f"drop ≤ {limit}: points to (a), cost" for limit in limits), "wasteful, destructive, %"]
    lines = []
    for key in ordered(rows):
        if not any("policies" in found for found in rows[key].values()):
            continue
        row = [name_of(key)]
        for limit in limits:
            lost = (
                paired(rows, key, "plain", lambda found, limit=limit: _routed_accuracy(found, limit))
                if "plain" in rows
                else [0.0]
            )
            cost = over_seeds(rows, key, lambda found, limit=limit: _first(found["policies"][limit])["cost"])
            row.append(f"{show(lost, 1)}, {show(cost, 2)}")
        wasted = [over_seeds(rows, key, lambda found, i=i: 100 * _first(found["tests"])["overthinking"][i]) for i in (0, 1)]
        lines.append([*row, f"{show(wasted[0], 1)}, {show(wasted[1], 1)}"])
    return table(head, lines)


def _first(sets: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in sets.items() if key not in ("thresholds", "temperatures"))  # type: ignore[no-any-return]


def _routed_accuracy(found: dict[str, Any], limit: str) -> float:
    """In points; of a plain network, its accuracy."""
    if "policies" not in found:
        return accuracy(-1)(found)
    return float(100 * _first(found["policies"][limit])["accuracy"])


def bars_table(results: Path) -> list[str]:
    """A row a promise, a column a comparison; what is judged once stands in the first."""
    promises = list(bars(results))
    columns = [track.name for track in TRACKS]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for promise in promises:
        row = rows.setdefault((promise.what, f"{promise.sense} {promise.limit:g}"), {})
        row[promise.track or columns[0]] = _judged(promise)
    lines = [[*names, *(row.get(column, "") for column in columns)] for names, row in rows.items()]
    missed = [promise for promise in promises if not promise.is_kept]
    return [
        f"{len(promises) - len(missed)} kept, {len(missed)} **missed**.",
        "",
        *table(["promise", "bar", *columns], lines),
        "",
        *_reasons(missed),
    ]


def _judged(promise: Promise) -> str:
    figure = f"{promise.figure:.3g} {promise.note}".strip()
    return f"{figure}, kept" if promise.is_kept else f"**{figure}, missed**"


def known_misses() -> dict[str, str]:
    return json.loads((Path(__file__).parent / "known_misses.json").read_text())  # type: ignore[no-any-return]


def _reasons(missed: Sequence[Promise]) -> list[str]:
    """Why what was missed was missed, from the list of known misses."""
    found: dict[str, list[str]] = {}
    for promise in missed:
        for key, reason in known_misses().items():
            if fnmatch(promise.key, key):
                where = f" [{promise.track}]" if promise.track else ""
                found.setdefault(reason, []).append(f"{promise.what}{where}")
    return [f"- {reason}\n  (*{'; '.join(which)}*)" for reason, which in found.items()]


def _progress(results: Path) -> list[str]:
    left = missing(results)
    if not left:
        return []
    total = sum(len(FOR[data]) * SEEDS[data] for data in FOR)
    return [
        f"**The study is not complete: {len(left)} runs are missing (of {total} trainings and the timings).** What follows is what there is so far, over the "
        "seeds that the tables name; with few seeds the intervals are wide. `make study` goes on where it stopped.",
        "",
    ]


def collapse_table(rows: Rows) -> list[str]:
    head = ["maps in place of exit 0's", "cosine", "CC", "CC, shuffled", "skill", "KL"]
    lines = []
    for kind in ("uniform", "centre bias"):
        picks = [_collapse(kind, field) for field in ("cosine", "cc", "cc_null", "skill", "kl")]
        lines.append([kind, *(show(over_seeds(rows, "egt", pick), 2) for pick in picks)])
    measures = (("cosine", "value"), ("cc", "value"), ("cc", "null"), ("cc", "skill"), ("kl", "value"))
    lines.append(["exit 0's own (EGT)", *(show(over_seeds(rows, "egt", consistency(m, f, 0)), 2) for m, f in measures)])
    return table(head, lines)


def _collapse(kind: str, field: str) -> Pick:
    return lambda found: float(found["collapse"][kind][field])


def sweep_table(results: Path) -> list[str]:
    lines = []
    for name in SWEPT:
        for path in sorted((results / "sweep").glob(f"{name}-*.json"), key=lambda p: float(p.stem.rpartition("-")[2])):
            found = json.loads(path.read_text())
            near, far = found["agreeing"], found["disagreeing"]
            mark = " (chosen)" if found["alpha"] == chosen(results, name, ()) else ""  # of those that are there
            row = [f"{100 * near['accuracy'][k]:.1f} / {100 * far['accuracy'][k]:.1f}" for k in (0, -1)]
            lines.append([name, f"{found['alpha']:g}{mark}", *row, " / ".join(f"{s:.2f}" for s in near["skill"])])
    return table(["loss", "weight", "exit 0, agreeing / disagreeing, %", "final, %", "skill at exits 0 / 1 / 2"], lines)


def speed_table(results: Path) -> list[str]:
    lines = []
    for path in sorted((results / "speed").glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            speed = row["speed"]
            times = f"{speed['speedup']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
            lines.append([path.stem, row["policy"], times, f"{row['cost']:.3f}", f"{100 * row['accuracy_drop']:.2f}"])
    return table(["run", "policy", "times faster than (a), batch 64 (quartiles)", "cost", "points lost to (a)"], lines)


def trials_table(results: Path) -> list[str]:
    """The trial runs that the defaults were chosen from."""
    found = json.loads((results / "trials.json").read_text())["trials"]
    head = ["trial", "cost of exit 0", "exit 0 / final, agreeing, %", "disagreeing, %", "skill 0 / 1 / 2", "KL, mean"]
    head += ["deletion over random, exit 0 / final", "energy in the object, final"]
    lines = []
    for row in found:
        ends = [f"{row[test][0]:.1f} / {row[test][-1]:.1f}" for test in ("agreeing", "disagreeing")]
        if "skill" not in row:
            lines.append([row["title"], "", *[f"{row[test][-1]:.1f}" for test in ("agreeing", "disagreeing")], *[""] * 4])
            continue
        skill = " / ".join(f"{s:.2f}" for s in row["skill"])
        deletion = f"{row['deletion'][0]:.2f} / {row['deletion'][-1]:.2f}"
        kl, energy = sum(row["kl"]) / len(row["kl"]), row["energy"][-1]
        lines.append([row["title"], f"{row['cost'][0]:.3f}", *ends, skill, f"{kl:.3f}", deletion, f"{energy:.2f}"])
    return table(head, lines)


def words(name: str) -> list[str]:
    return (WORDS / f"{name}.md").read_text().rstrip().split("\n")


def page(results: Path, docs: Path) -> list[str]:
    """The lines of results.md; its plots are written to ``docs``."""
    parts = {data: rows for data in TITLES if (rows := load_runs(results, data))}
    scenes = parts.get("scenes", {})
    lines = [*words("head"), "", "## The promises", "", *_progress(results), *bars_table(results), ""]
    for data, rows in parts.items():
        lines += [f"## {TITLES[data]}", "", *main_table(rows), "", *routed_table(rows), ""]
        if plot_curves(rows, docs / f"results-{data}.svg"):
            lines += [f"![accuracy against cost](results-{data}.svg)", ""]
    if (results / "speed").exists():
        lines += ["## Wall-clock", "", *words("speed"), "", *speed_table(results), ""]
    if (results / "sweep").exists():
        plot_sweep(results / "sweep", docs / "results-sweep.svg")
        lines += ["## The weight of every loss", "", *words("sweep"), "", *sweep_table(results), ""]
        lines += ["![weights](results-sweep.svg)", ""]
    if "egt" in scenes:
        lines += ["## Doubts", "", *words("doubts"), "", *collapse_table(scenes), ""]
    lines += [*words("tried"), ""]
    if (results / "trials.json").exists():
        lines += [*trials_table(results), "", *words("learnt"), ""]
    for data, rows in parts.items():
        lines += [f"## Details: {data}", "", *faithfulness_table(rows), "", *detail_table(rows), ""]
    return [*lines, *words("recipes")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "study")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    (args.docs / "results.md").write_text("\n".join(page(args.results, args.docs)) + "\n")
    print(f"wrote {args.docs / 'results.md'}")


if __name__ == "__main__":
    main()
