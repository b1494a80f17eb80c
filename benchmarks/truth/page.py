"""Writes the tables of docs/measured/truth.md from truth.csv.

Usage: python -m benchmarks.truth.page
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from benchmarks.markdown import ROOT, fill, say_what_is_missing, table
from benchmarks.promises import Promise, add_reasons
from benchmarks.store import Tree
from benchmarks.truth.conditions import LOSSES, TITLES
from benchmarks.truth.jobs import list_runs
from benchmarks.truth.promises import list_promises
from benchmarks.truth.runs import TRUTH
from benchmarks.truth.tasks import SEEDS

TASK_TITLES = {
    "scenes": "Scenes of 40 pixels, our small network from scratch",
    "small": "Few scenes: 1,363 of 9 classes, the same network",
    "digits": "Handwritten digits of 8 pixels, enlarged to 32, the same network",
    "fashion": "Fashion-MNIST, the same network",
    "pictures": "Pictures of drawings, 128 pixels, EfficientNet-Lite0 with ImageNet weights (7x7 cells)",
    "vit": "The scenes of 40 pixels, a vision transformer of six blocks with a convolutional stem, from scratch",
    "reviews": "Film reviews, all-MiniLM-L6-v2",
}
Runs = Mapping[str, Tree]


def write_task(runs: Runs, task: str) -> list[str]:
    """A row for each condition; figures of the exits one after the other."""
    rows = []
    for condition in LOSSES:
        found = [runs[name] for seed in range(SEEDS[task]) if (name := f"{task}/{condition}-{seed}") in runs]
        if found:
            rows.append([TITLES[condition], str(len(found)), *_write_cells(found)])
    if not rows:
        return []
    tests = list(next(tree for name, tree in runs.items() if name.startswith(f"{task}/"))["tests"])
    head = ["", "seeds", *(f"accuracy, {test}, %" for test in tests)]
    head += ["skill", "share of the oracle", "relevance's share", "energy in the object"]
    return [f"**{TASK_TITLES[task]}**", "", *table(head, rows), ""]


def _write_cells(found: list[Tree]) -> list[str]:
    accuracy = [_join([one["tests"][test]["accuracy"] for one in found], 1, 100) for test in found[0]["tests"]]
    if "attention" not in found[0]:
        return [*accuracy, "", "", "", ""]
    energy = [one["attention"]["energy_in_mask"] for one in found]
    shares = [_join([one[of]["deletion_share"] for one in found], 2) for of in ("attention", "relevance")]
    return [*accuracy, _join([one["skill"] for one in found], 2), *shares, "" if None in energy else _join(energy, 2)]


def _join(values: list[list[float | None]], digits: int, scale: float = 1) -> str:
    """Means over runs, exit by exit; runs without the figure (the oracle gained nothing over chance) are left out."""
    columns = [[scale * one for one in column if one is not None] for column in zip(*values, strict=True)]
    return " / ".join(f"{mean(column):.{digits}f}" if column else "none" for column in columns)


def write_promises(promises: list[Promise]) -> list[str]:
    """All bars, kept or not, with reasons for misses."""
    rows = []
    for one in promises:
        half = f" ± {one.half:.2g}" if one.half is not None else f" {one.note}" if one.note else ""
        rows.append([one.what, f"{one.measured:.3g}{half}", f"{one.sense} {one.bar:g}", "yes" if one.is_kept else "no"])
    reasons = list(dict.fromkeys(one.reason for one in promises if one.reason and not one.is_kept))
    return [*table(["promise", "measured", "bar", "kept"], rows), "", *(f"- {reason}" for reason in reasons)] if rows else []


def main() -> None:
    TRUTH.fold()
    runs = TRUTH.read()
    missing = say_what_is_missing(["{}/{}-{}".format(*one) for one in list_runs()], runs, "make truth")
    lines = [*missing, *(line for task in SEEDS for line in write_task(runs, task))]
    fill("truth", [*lines, *write_promises(list(add_reasons(list_promises(runs))))])
    print(f"wrote the tables of {ROOT / 'docs' / 'measured' / 'truth.md'}")


if __name__ == "__main__":
    main()
