"""Writes docs/results.md, its plots and the README's words about it from benchmarks/results/study. Run after study.py; no number is typed by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.markdown import replace
from benchmarks.study.conditions import SWEPT, chosen
from benchmarks.study.plots import plot_curves, plot_sweep
from benchmarks.study.promises import TRACKS, Promise, bars, load_runs, missing, planned
from benchmarks.study.short import short
from benchmarks.study.tables import (
    collapse_table,
    detail_table,
    faithfulness_table,
    main_table,
    routed_table,
    table,
    tests_of,
)
from benchmarks.study.trials import TRIALS

ROOT = Path(__file__).parents[2]
WORDS = Path(__file__).parent / "words"
TITLES = {
    "scenes": "Scenes: 12,000 training images, backgrounds that tell the class in 80 % of them",
    "small": "Small data: 9 classes, 1,363 training and 1,364 test images",
    "digits": "Handwritten digits (scikit-learn)",
    "fashion": "Fashion-MNIST as it is: 54,000 images to train on, 6,000 for thresholds and the log, 10,000 to test on",
}


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
        counted(promises),
        "",
        *table(["promise", "bar", *columns], lines),
        "",
        *_reasons(missed),
    ]


def counted(promises: Sequence[Promise]) -> str:
    """How many were kept; the same figure for two comparisons (about EGT alone, say) counts once."""
    once = {(promise.what, promise.figure, promise.limit): promise for promise in promises}.values()
    missed = [promise for promise in once if not promise.is_kept]
    still_open = sum(promise.is_open for promise in once)
    return (
        f"{len(once) - len(missed)} kept, {len(missed)} **missed**, counting what stands in two columns once; of all these, {still_open} "
        "have an interval that reaches over the bar (*open*: other seeds could turn them). What is compared in one way only stands in the first column."
    )


def _judged(promise: Promise) -> str:
    note = promise.note if promise.half is None else f"± {promise.half:.2g}"
    figure = f"{promise.figure:.3g} {note}".strip()
    judged = f"{figure}, kept" if promise.is_kept else f"**{figure}, missed**"
    return f"{judged} (*open*)" if promise.is_open else judged


def known_misses() -> dict[str, str]:
    return json.loads((Path(__file__).parents[1] / "known_misses.json").read_text())  # type: ignore[no-any-return]


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
    return [
        f"**The study is not complete: {len(left)} of {len(planned())} runs are missing.** What follows is what there is so far, over the "
        "seeds that the tables name; with few seeds the intervals are wide. `make study` goes on where it stopped.",
        "",
    ]


def sweep_table(results: Path) -> list[str]:
    lines = []
    for name in SWEPT:
        for path in sorted((results / "sweep").glob(f"{name}-*.json"), key=lambda p: float(p.stem.rpartition("-")[2])):
            found = json.loads(path.read_text())
            near, far = found["agreeing"], found["disagreeing"]
            is_best = name != "none" and found["alpha"] == chosen(results, name, ())  # of those that are there
            mark = " (best)" if is_best else ""
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


def later_trials_table(results: Path) -> list[str]:
    """The trials of study_trials.py, which keep more."""
    head = ["trial", "exit 0 / final, agreeing, %", "disagreeing, %"]
    head += ["final, if it answers with all exits' average: agreeing / disagreeing, %", "skill 0 / 1 / 2", "KL, mean"]
    head += ["deletion over random, exit 0 / final", "energy in the object, exit 0 / final"]
    lines = []
    for name in TRIALS:
        path = results / "trials" / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            tests = [found[test] for test in ("agreeing", "disagreeing")]
            ends = [f"{100 * test['accuracy'][0]:.1f} / {100 * test['accuracy'][-1]:.1f}" for test in tests]
            averaged = " / ".join(f"{100 * test['averaged'][-1]:.1f}" for test in tests)
            skill = " / ".join(f"{s:.2f}" for s in tests[0]["skill"])
            maps = found["faithfulness"]
            deletion = " / ".join(f"{maps['deletion'][k] - maps['deletion_random'][k]:.2f}" for k in (0, -1))
            energy = " / ".join(f"{maps['energy_in_mask'][k]:.2f}" for k in (0, -1))
            kl = sum(tests[0]["kl"]) / len(tests[0]["kl"])
            lines.append([found["title"], *ends, averaged, skill, f"{kl:.3f}", deletion, energy])
    return table(head, lines)


def words(name: str) -> list[str]:
    return (WORDS / f"{name}.md").read_text().rstrip().split("\n")


def page(results: Path, docs: Path) -> list[str]:
    """The lines of results.md; its plots are written to ``docs``."""
    parts = {data: rows for data in TITLES if (rows := load_runs(results, data))}
    scenes = parts.get("scenes", {})
    lines = [
        *words("head"),
        "",
        *short(results, "\n".join(words("short"))),
        "",
        "## The promises",
        "",
        *_progress(results),
        *bars_table(results),
        "",
    ]
    for data, rows in parts.items():
        lines += [f"## {TITLES[data]}", "", *main_table(rows), ""]
        for test in tests_of(rows):
            of = "" if test == "test" else f"{test} "
            lines += [f"Thresholds chosen on calibration data, on {of}test data:", "", *routed_table(rows, test), ""]
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
        lines += [*trials_table(results), ""]
        if (results / "trials").exists():
            lines += [*words("later"), "", *later_trials_table(results), ""]
        lines += [*words("learnt"), ""]
    for data, rows in parts.items():
        lines += [f"## Details: {data}", "", *faithfulness_table(rows), "", *detail_table(rows), ""]
    return [*lines, *words("recipes")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "study")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    (args.docs / "results.md").write_text("\n".join(page(args.results, args.docs)) + "\n")
    replace(
        args.readme, "<!-- study: written by benchmarks/study/page.py -->", short(args.results, "\n".join(words("readme")))
    )
    print(f"wrote {args.docs / 'results.md'} and what {args.readme} says of it")


if __name__ == "__main__":
    main()
