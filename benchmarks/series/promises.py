"""The promises of docs/measured/series.md, of means over seeds; differences are paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.promises import Promise
from benchmarks.series.tasks import ARCHIVE, MOTIFS, SEEDS
from benchmarks.store import Tree
from benchmarks.study.report.figures import interval

COST, LOST, ENERGY = 0.6, 0.5, 0.7
Runs = Mapping[str, Tree]


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Those of the tasks of which all seeds are there."""
    for task in (MOTIFS, *ARCHIVE):
        seeds = find_seeds(runs, task)
        if len(seeds) == SEEDS:
            ours, plain = ([runs[f"{task}/{condition}-{seed}"] for seed in seeds] for condition in ("egt", "plain"))
            yield from _of_answers(task, ours, plain)
            if task == MOTIFS:
                yield from _of_maps(ours, [runs[f"{task}/without-{seed}"] for seed in seeds])


def find_seeds(runs: Runs, task: str) -> list[int]:
    """Those of which all networks are there."""
    conditions = ("egt", "plain", "without") if task == MOTIFS else ("egt", "plain")
    seeds = {int(name.rpartition("-")[2]) for name in runs if name.startswith(f"{task}/")}
    return sorted(seed for seed in seeds if all(f"{task}/{condition}-{seed}" in runs for condition in conditions))


def _of_answers(task: str, ours: list[Tree], plain: list[Tree]) -> Iterator[Promise]:
    pairs = zip(_list_final(ours), _list_final(plain), strict=True)
    middle, half = interval([100 * (a - b) for a, b in pairs])
    what = f"{task}: final exit minus plain, points, upper end"
    yield Promise(f"series|{task}|final", what, middle + half, ">=", 0, note=f"({middle:.2g} ± {half:.2g})")
    cost, error = interval([one["routed"]["cost"] for one in ours])
    yield Promise(f"series|{task}|cost", f"{task}: cost, thresholds for 0.5 points", cost, "<=", COST, error)
    lost, error = interval([100 * one["routed"]["accuracy_drop"] for one in ours])
    yield Promise(f"series|{task}|lost", f"{task}: points lost on test data", lost, "<=", LOST, error)


def _list_final(runs: list[Tree]) -> list[float]:
    return [next(iter(one["tests"].values()))["accuracy"][-1] for one in runs]


def _of_maps(ours: list[Tree], without: list[Tree]) -> Iterator[Promise]:
    for k in range(len(ours[0]["cost"])):
        energy = [one["maps"]["energy_in_mask"][k] for one in ours]
        middle, half = interval(energy)
        yield Promise(f"series|energy|{k}", f"motifs: energy in the motif, exit {k}", middle, ">=", ENERGY, half)
        last = [one["maps"]["energy_in_mask"][-1] for one in without]
        middle, half = interval([a - b for a, b in zip(energy, last, strict=True)])
        what = f"motifs: energy in the motif, exit {k}, over the final exit's without EGT"
        yield Promise(f"series|gain|{k}", what, middle, ">=", 0, half)
