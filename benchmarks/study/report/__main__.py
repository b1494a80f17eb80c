"""Writes docs/measured/results.md, the pages and plots under docs/results, and a few lines elsewhere, from study.csv.

Usage: python -m benchmarks.study.report [--docs DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.markdown import ROOT, fill
from benchmarks.promises import Promise, add_reasons
from benchmarks.store import Store
from benchmarks.study.conditions import CONDITIONS, find_missing, list_runs
from benchmarks.study.report.figures import Rows, load_rows
from benchmarks.study.report.plots import plot_curves, plot_sweep
from benchmarks.study.report.promise_tables import count_promises, list_misses, promises_table
from benchmarks.study.report.promises import list_promises
from benchmarks.study.report.short import fill_in
from benchmarks.study.report.tables import (
    collapse_table,
    detail_table,
    faithfulness_table,
    list_tests,
    main_table,
    overview_table,
    routed_table,
)
from benchmarks.study.report.tuning_tables import later_trials_table, speed_table, sweep_table, trials_table
from benchmarks.study.runs import STUDY

WORDS = Path(__file__).parent / "words"
TITLES = {
    "scenes": "Scenes: 12,000 training images, backgrounds that tell the class in 80 % of them",
    "small": "Small data: 9 classes, 1,363 training and 1,364 test images",
    "digits": "Handwritten digits (scikit-learn)",
    "fashion": "Fashion-MNIST as it is: 54,000 images to train on, 6,000 for thresholds and the log, 10,000 to test on",
}
JUDGED = (
    "What is compared in one way only stands in the first column. "
    "The reasons for what was missed are in [the summary](../results.md#what-was-missed)."
)
MORE = {
    "protocol": "How the study was made, and how to read its tables",
    "promises": "All promises, each beside its bar",
    "speed": "Wall-clock",
    "sweep": "The weight of every loss",
    "trials": "What was tried",
    "doubts": "Doubts, and what speaks to them",
}


def read_words(name: str) -> list[str]:
    return (WORDS / f"{name}.md").read_text().rstrip().split("\n")


def write_summary(store: Store, parts: dict[str, Rows], promises: list[Promise]) -> list[str]:
    """results.md: the question, one table, what was found and what was missed."""
    lines = ["\n".join(read_words("question")).format(conditions=len(CONDITIONS)), "", *_warn(store)]
    if "scenes" in parts:
        tests = " / ".join(list_tests(parts["scenes"]))
        lines += [f"## Scenes in one table ({tests} backgrounds)", "", *overview_table(parts["scenes"]), ""]
        lines += ["![accuracy on test data against mean cost, by condition](results/scenes.svg)", ""]
    lines += ["## What was found", "", *fill_in(store, "\n".join(read_words("short"))), ""]
    lines += ["## What was missed", "", count_promises(promises), "", *list_misses(promises), "", "## Details", ""]
    lines += [f"- [{title}](results/{name}.md)" for name, title in ({d: TITLES[d] for d in parts} | MORE).items()]
    return [*lines, "", *read_words("recipes")]


def _warn(store: Store) -> list[str]:
    left = find_missing(store)
    if not left:
        return []
    return [
        f"**The study is not complete: {len(left)} of {len(list_runs())} runs are missing.** What follows is what there is so far, over the "
        "seeds that the tables name; with few seeds the intervals are wide. `make study` goes on where it stopped.",
        "",
    ]


def write_data_page(data: str, rows: Rows, folder: Path) -> list[str]:
    """All tables of one data set, and its plot."""
    lines = [f"# {TITLES[data]}", "", "Terms and conditions are in [the protocol](protocol.md).", "", *main_table(rows), ""]
    if plot_curves(rows, folder / f"{data}.svg"):
        lines += [f"![accuracy on test data against mean cost, by condition]({data}.svg)", ""]
    for test in list_tests(rows):
        of = "" if test == "test" else f"{test} "
        lines += [f"Thresholds chosen on calibration data, on {of}test data:", "", *routed_table(rows, test), ""]
    lines += ["## Faithfulness of every exit", "", *faithfulness_table(rows), ""]
    return [*lines, "## Every exit, and every measure beside its nulls", "", *detail_table(rows)]


def write_pages(store: Store, docs: Path) -> dict[str, list[str]]:
    """All pages by their path under ``docs``; plots are written there."""
    parts = {data: rows for data in TITLES if (rows := load_rows(store, data))}
    promises, folder = list(add_reasons(list_promises(store))), docs / "results"
    pages = {"results.md": write_summary(store, parts, promises)}
    for data, rows in parts.items():
        pages[f"results/{data}.md"] = write_data_page(data, rows, folder)
    more = {
        "protocol": read_words("protocol"),
        "promises": [f"# {MORE['promises']}", "", count_promises(promises), JUDGED, "", *promises_table(promises)],
        "speed": [*read_words("speed"), "", *speed_table(store), "", *read_words("speed-history")],
        "sweep": [*read_words("sweep"), "", *sweep_table(store), ""],
        "trials": [*read_words("tried"), "", *trials_table(), "", *read_words("later"), "", *later_trials_table(store)],
        "doubts": [
            *read_words("doubts"),
            "",
            *(collapse_table(parts["scenes"]) if "egt" in parts.get("scenes", {}) else []),
        ],
    }
    if plot_sweep(store, folder / "sweep.svg"):
        more["sweep"].append("![skill and accuracy along the weight of every loss](sweep.svg)")
    more["trials"] += ["", "## What was learnt", "", *read_words("learnt")]
    return pages | {f"results/{name}.md": lines for name, lines in more.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "measured")
    args = parser.parse_args()
    STUDY.fold()
    (args.docs / "results").mkdir(parents=True, exist_ok=True)
    for name, lines in write_pages(STUDY, args.docs).items():
        (args.docs / name).write_text("\n".join(lines).rstrip() + "\n")
    filled = fill("study", fill_in(STUDY, "\n".join(read_words("readme"))))
    print(f"wrote {args.docs / 'results.md'}, {args.docs / 'results'} and a part of {len(filled)} other pages")


if __name__ == "__main__":
    main()
