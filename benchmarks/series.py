"""Series: what exits cost the final answer and save, on data sets that come with aeon, and whether maps find a known motif.

Cells are TASK/CONDITION-SEED; training goes on from its last epoch. The data sets come with ``aeon`` (extra ``benchmark``). Two hours on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, share_error, table
from benchmarks.networks import ResNet1d
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import Task, build_network
from exitlens.data.lines import read_ts
from exitlens.data.sets import measure_scaling

MOTIFS, SEEDS = "motifs", 5
UPDATES, BATCH, DISTILL = 1280, 16, 1.0  # of the archive's sets: least updates of the weights; see docs/measured/series.md
AGREEMENT = 0.9  # share of the motifs' training series whose level says the class, too
ARCHIVE = {  # every set of aeon 1.6 for classification with series of equal length up to 200 steps
    "basicmotions": "BasicMotions/BasicMotions",
    "gunpoint": "GunPoint/GunPoint",
    "italypower": "ItalyPowerDemand/ItalyPowerDemand",
    "vowels": "JapaneseVowels/JapaneseVowels_eq",
}
EGT, WITHOUT, PLAIN = "egt", "without", "plain"
LOSSES = {
    PLAIN: xl.EGTLoss(weight=0.0),  # of one exit: cross-entropy alone
    WITHOUT: xl.EGTLoss(weight=0.0),
    EGT: xl.EGTLoss(target="mean", sharpness=1.15),  # chosen on validation data of another seed, see docs/measured/series.md
}
TITLES = {PLAIN: "plain network", WITHOUT: "without EGT", EGT: "EGT"}
WIDTHS, AT = (24, 32, 48, 64), ("blocks.0", "blocks.1", "blocks.2")
MOST_LOST = 0.005  # accuracy, on validation data
MAPS, JUDGED = ("deletion_share", "energy_in_mask"), 500  # measures of maps, and the series that they are judged on


def list_cells(quick: bool = False) -> dict[str, Job]:
    pairs = [(MOTIFS, condition) for condition in (PLAIN, EGT, WITHOUT)]
    pairs += [(task, condition) for task in ARCHIVE for condition in (PLAIN, EGT)]
    return list_by_seed(partial(measure_cell, quick=quick), {f"{task}/{condition}": SEEDS for task, condition in pairs})


def measure_cell(name: str, condition: str, seed: int, quick: bool = False) -> Tree:
    task = load_task(name, seed)
    if quick:
        task = replace(task, train=task.train.first(32), settings={**task.settings, "epochs": 1})
    net = build_network(task, seed, exits=condition != PLAIN)
    folder = Path("runs") / ("series-quick" if quick else "series") / name / f"{condition}-{seed}"
    loss = replace(LOSSES[condition], distill=DISTILL if condition == EGT and name != MOTIFS else 0.0)
    xl.fit(net, task.train, task.validation, loss=loss, seed=seed, out_dir=folder / "fit", resume=True, **task.settings)
    _, channels, steps = task.train.values.shape  # type: ignore[attr-defined]
    sizes = {"train": len(task.train), "validation": len(task.validation), "steps": steps, "channels": channels}
    return {**sizes, "classes": len(task.train.classes), **measure(net, task)}


def load_task(name: str, seed: int) -> Task:
    """Return the data of one cell, and how to train on it.

    All series of an archive's set are split anew by seed: half of each class to train with, a quarter each for validation and test.
    """
    if name == MOTIFS:
        load = partial(xl.demo.load_motifs, offset_agreement=AGREEMENT, seed=seed)
        tests = {"agreeing": load("test"), "independent": load("test", offset_agreement=0.25)}
        return make_task(load("train", limit=1000), load("validation", limit=500), tests, epochs=12, batch_size=32)
    whole, rng = read_archive(name), torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for label in range(len(whole.classes)):
        rows = (whole.labels == label).nonzero()[:, 0]
        half, rest = len(rows) // 2, len(rows) - len(rows) // 2
        shuffled = rows[torch.randperm(len(rows), generator=rng)].split([half, rest // 2, rest - rest // 2])
        for part, chosen in zip(parts, shuffled, strict=True):
            part.append(chosen)
    train, validation, test = (whole.subset(torch.cat(rows)) for rows in parts)
    scaling = measure_scaling(train)
    train, validation, test = (part.scaled(scaling) for part in (train, validation, test))
    epochs = math.ceil(UPDATES / math.ceil(len(train) / BATCH))
    return make_task(train, validation, {"test": test}, epochs=epochs, batch_size=BATCH)


def find_archive() -> Path:
    spec = find_spec("aeon")
    if spec is None or spec.origin is None:
        raise SystemExit("aeon: expected the package for its data sets, got none. Fix: pip install aeon")
    return Path(spec.origin).parent / "datasets" / "data"


def read_archive(name: str) -> xl.data.ArraySet:
    """Return training and test series of one of aeon's sets together."""
    start = find_archive() / ARCHIVE[name]
    files = [read_ts(start.with_name(f"{start.name}_{part}.ts")) for part in ("TRAIN", "TEST")]
    values = torch.stack([series for series in chain(*(file.series or () for file in files)) if series is not None])
    names = [str(label) for label in chain(*(file.labels or () for file in files))]
    classes, channels = tuple(sorted(set(names))), values.shape[1]
    preprocess = xl.data.SeriesPreprocess((0.0,) * channels, (1.0,) * channels)
    return xl.data.ArraySet(values, torch.tensor([classes.index(label) for label in names]), classes, preprocess)


def make_task(
    train: xl.data.ArraySet, validation: xl.data.ArraySet, tests: dict[str, xl.data.ArraySet], **settings: int
) -> Task:
    build = partial(ResNet1d, train.values.shape[1], len(train.classes), WIDTHS)
    return Task(train, validation, tests, build, AT, {**settings, "amp": False, "progress": False})


def measure(net: xl.ExitNet, task: Task) -> Tree:
    """Measure accuracy on every test set, thresholds chosen on validation data, and maps on the first test set."""
    measured: Tree = {"cost": net.cost.tolist(), "head_share": net.head_share, "tests": {}}
    traces = {name: xl.collect(net, data, batch_size=250) for name, data in task.tests.items()}
    for name, trace in traces.items():
        report = xl.evaluate(trace, xl.Policy.never(net.num_exits))
        measured["tests"][name] = {"samples": len(trace), "accuracy": [row.accuracy for row in report.exits]}
        if net.num_exits > 1:
            measured["tests"][name]["skill"] = [row.consistency["cc"]["skill"] for row in report.exits[:-1]]
    if net.num_exits == 1:
        return measured
    policy = xl.calibrate(xl.collect(net, task.validation, batch_size=250), max_accuracy_drop=MOST_LOST)
    report = xl.evaluate(next(iter(traces.values())), policy)
    measured["routed"] = {"cost": report.cost, "accuracy_drop": report.accuracy_drop}
    judged = xl.measure_faithfulness(net, next(iter(task.tests.values())), samples=JUDGED, oracle_samples=200).to_dict()
    return measured | {"maps": {name: judged[name] for name in MAPS}}


COST, LOST, ENERGY = 0.6, 0.5, 0.7


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Promise means over seeds, with differences paired by seed, of tasks all of whose seeds are there."""
    for task in (MOTIFS, *ARCHIVE):
        ours, plain, without = (list_seeds(runs, f"{task}/{condition}") for condition in (EGT, PLAIN, WITHOUT))
        if min(map(len, (ours, plain, without or ours))) < SEEDS:
            continue
        test = next(iter(ours[0]["tests"]))
        count = ours[0]["tests"][test]["samples"]
        finals, others = ([run["tests"][test]["accuracy"][-1] for run in measured] for measured in (ours, plain))
        what = f"{task}: final exit minus plain, points"
        yield Promise.of_points(f"series|{task}|final", what, finals, others, count, ">=", 0)
        cost, what = [run["routed"]["cost"] for run in ours], f"{task}: cost, thresholds for 0.5 points"
        yield Promise.of_mean(f"series|{task}|cost", what, cost, "<=", COST, share_error(cost, count))
        routed = [final - run["routed"]["accuracy_drop"] for final, run in zip(finals, ours, strict=True)]
        what = f"{task}: points lost on test data"
        yield Promise.of_points(f"series|{task}|lost", what, finals, routed, count, "<=", LOST)
        if task == MOTIFS:
            others = [run["maps"]["energy_in_mask"][-1] for run in without]
            apart = share_error(others, JUDGED)
            for k in range(len(ours[0]["cost"])):
                energy = [run["maps"]["energy_in_mask"][k] for run in ours]
                what, error = f"motifs: energy in the motif, exit {k}", share_error(energy, JUDGED)
                yield Promise.of_mean(f"series|energy|{k}", what, energy, ">=", ENERGY, error)
                gain = [a - b for a, b in zip(energy, others, strict=True)]
                what = f"motifs: energy in the motif, exit {k}, over the final exit's without EGT"
                yield Promise.of_mean(f"series|gain|{k}", what, gain, ">=", 0, math.hypot(error, apart))


def write_answers(runs: Runs) -> list[str]:
    rows = []
    for task in (MOTIFS, *ARCHIVE):
        ours, plain = (list_seeds(runs, f"{task}/{condition}") for condition in (EGT, PLAIN))
        if ours and plain:
            first, test = ours[0], next(iter(ours[0]["tests"]))
            count = first["train"] + first["validation"] + first["tests"][test]["samples"]
            name = ARCHIVE.get(task, task).rpartition("/")[2].removesuffix("_eq")
            sizes = [name, str(count), f"{first['channels']} x {first['steps']}", str(first["classes"]), str(len(ours))]
            accuracy = [join_means([run["tests"][test]["accuracy"] for run in part], 1, 100) for part in (plain, ours)]
            routed = [mean(run["routed"][measure] for run in ours) for measure in ("cost", "accuracy_drop")]
            cost = join_means([first["cost"]], 2)
            rows.append([*sizes, *accuracy, cost, f"{routed[0]:.2f}", f"{100 * routed[1]:.2f}"])
    head = ["data", "series", "channels x steps", "classes", "seeds", "plain, %", "exits, %", "cost of the exits"]
    return [*table([*head, "cost, routed", "points lost"], rows), ""] if rows else []


def write_maps(runs: Runs) -> list[str]:
    head = ["", "seeds", "accuracy where the level agrees, %", "where it says nothing, %"]
    head += ["skill", "energy in the motif", "share of the oracle"]
    rows = []
    for condition in LOSSES:
        if measured := list_seeds(runs, f"{MOTIFS}/{condition}"):
            tests = measured[0]["tests"]
            cells = [join_means([run["tests"][test]["accuracy"] for run in measured], 1, 100) for test in tests]
            if "maps" in measured[0]:
                cells.append(join_means([next(iter(run["tests"].values()))["skill"] for run in measured], 2))
                names = ("energy_in_mask", "deletion_share")
                cells += [join_means([run["maps"][name] for run in measured], 2) for name in names]
            rows.append([TITLES[condition], str(len(measured)), *cells, *[""] * (len(head) - 2 - len(cells))])
    return [*table(head, rows), ""] if rows else []


def write_tables(runs: Runs) -> list[str]:
    return [*write_answers(runs), *write_maps(runs), *promise_table(list_promises(runs))]


STUDY = Study("series", list_cells, list_promises, {"series": write_tables}, processes=2)
