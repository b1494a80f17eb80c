"""Writes the tables of docs/measured/series.md from series.csv.

Usage: python -m benchmarks.series.page
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from benchmarks.markdown import ROOT, fill, say_what_is_missing, table
from benchmarks.promises import add_reasons
from benchmarks.series.jobs import list_runs
from benchmarks.series.measure import EGT, LOSSES, PLAIN, WITHOUT
from benchmarks.series.promises import find_seeds, list_promises
from benchmarks.series.runs import SERIES
from benchmarks.series.tasks import ARCHIVE, MOTIFS
from benchmarks.store import Tree
from benchmarks.truth.page import write_promises

TITLES = {PLAIN: "plain network", WITHOUT: "without EGT", EGT: "EGT"}
NAMES = {name: path.rpartition("/")[2].removesuffix("_eq") for name, path in ARCHIVE.items()}
ANSWERS = ["data", "series", "channels x steps", "classes", "seeds", "plain, %", "exits, %", "cost of the exits"]
ROUTED = ["cost, routed", "points lost"]
MAPS = [
    "",
    "seeds",
    "accuracy where the level agrees, %",
    "where it says nothing, %",
    "skill",
    "energy in the motif",
    "share of the oracle",
]
Runs = Mapping[str, Tree]


def write_answers(runs: Runs) -> list[str]:
    """A row for each data set: the plain network beside the exits, and what routing costs."""
    rows = []
    for task in (MOTIFS, *ARCHIVE):
        seeds = find_seeds(runs, task)
        if seeds:
            ours, plain = ([runs[f"{task}/{condition}-{seed}"] for seed in seeds] for condition in (EGT, PLAIN))
            first, test = ours[0], next(iter(ours[0]["tests"]))
            count = first["train"] + first["validation"] + first["tests"][test]["samples"]
            sizes = [str(count), f"{first['channels']} x {first['steps']}", str(first["classes"]), str(len(seeds))]
            accuracy = [_join([one["tests"][test]["accuracy"] for one in found], 1, 100) for found in (plain, ours)]
            routed = [mean(one["routed"][name] for one in ours) for name in ("cost", "accuracy_drop")]
            cost = _join([first["cost"]], 2)
            rows.append([NAMES.get(task, task), *sizes, *accuracy, cost, f"{routed[0]:.2f}", f"{100 * routed[1]:.2f}"])
    return [*table([*ANSWERS, *ROUTED], rows), ""] if rows else []


def write_maps(runs: Runs) -> list[str]:
    """A row for each loss: answers and maps on motifs."""
    rows = []
    for condition in LOSSES:
        found = [runs[f"{MOTIFS}/{condition}-{seed}"] for seed in find_seeds(runs, MOTIFS)]
        if found:
            tests = found[0]["tests"]
            cells = [_join([one["tests"][test]["accuracy"] for one in found], 1, 100) for test in tests]
            if "maps" in found[0]:
                cells.append(_join([next(iter(one["tests"].values()))["skill"] for one in found], 2))
                cells += [_join([one["maps"][name] for one in found], 2) for name in ("energy_in_mask", "deletion_share")]
            rows.append([TITLES[condition], str(len(found)), *cells, *[""] * (len(MAPS) - 2 - len(cells))])
    return [*table(MAPS, rows), ""] if rows else []


def _join(values: list[list[float | None]], digits: int, scale: float = 1) -> str:
    """Means over runs, exit by exit."""
    columns = [[scale * one for one in column if one is not None] for column in zip(*values, strict=True)]
    return " / ".join(f"{mean(column):.{digits}f}" if column else "none" for column in columns)


def write_part(runs: Runs) -> list[str]:
    """All that stands between the markers."""
    missing = say_what_is_missing(["{}/{}-{}".format(*one) for one in list_runs()], runs, "make series")
    promises = write_promises(list(add_reasons(list_promises(runs))))
    lines = [*missing, *write_answers(runs), *write_maps(runs), *promises]
    return lines if promises else lines[:-1]


def main() -> None:
    SERIES.fold()
    fill("series", write_part(SERIES.read()))
    print(f"wrote the tables of {ROOT / 'docs' / 'measured' / 'series.md'}")


if __name__ == "__main__":
    main()
