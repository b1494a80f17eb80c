"""Do maps agree, are they true, and what do answers pay for it? With EGT, without it and with controls, on seven tasks.

Cells are TASK/CONDITION-SEED. Training goes on from its last epoch. Pictures need ``openclipart-png``, fashion needs
``dataset-fashion-mnist``, and pictures, transformers and reviews the extra ``benchmark``. All of it takes hours.
"""

from __future__ import annotations

import fcntl
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, share_error, table
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import SEEDS, TASKS, TITLES, Task, build_network
from exitlens.data.sets import SampleSet
from exitlens.workflow.faithfulness import measure_faithfulness

WATCHED = 500  # validation samples that show how a training goes
SAMPLES, ORACLE, RELEVANCE = 1000, 300, 100  # for faithfulness; of these for the occlusion oracle; for relevance maps
SHARES = ("deletion", "deletion_random", "deletion_share", "deletion_share_error")
SWAPS = {  # columns that earlier runs lack are left out where no run has them
    "binding at 20 %": ("swaps", "binding"),
    "another's map": ("swaps", "another"),
    "changed with the background": ("swaps", "cue"),
}
LATER = {
    "its mean from 5 to 80 % of the cells": ("attention", "deletion_area_share"),
    "share, blurred cells": ("blur", "deletion_share"),
    "share, imputed cells": ("road", "deletion_share"),
    "evidence's share": ("evidence", "deletion_share"),
}


@dataclass(frozen=True)
class PermutedLoss(xl.EGTLoss):
    """The control: every map is pulled towards the target of another sample of the batch."""

    def make_targets(self, maps: Sequence[Tensor], relevance: Tensor | None) -> list[Tensor]:
        return [target.roll(1, 0) for target in super().make_targets(maps, relevance)]


EGT, WITHOUT, PLAIN, ATTENTION, CONTROL = "egt", "without", "plain", "attention", "permuted"
CONDITIONS: dict[str, tuple[xl.EGTLoss | None, str]] = {  # loss (none: no exits) and title; only the loss differs
    PLAIN: (None, "plain network"),
    WITHOUT: (xl.EGTLoss(weight=0.0), "without EGT"),
    EGT: (xl.EGTLoss(), "EGT (the defaults)"),
    ATTENTION: (xl.EGTLoss(target="attention", reach="network"), "EGT towards the final attention, for all weights"),
    CONTROL: (PermutedLoss(), "control: targets of other samples"),
}


def count_seeds(task: str, condition: str) -> int:
    """Return how many networks of a condition are trained: fewer of those that are only there for comparison."""
    return SEEDS[task] if condition not in (ATTENTION, CONTROL) else 3 if task == "scenes" else 1


def list_cells(quick: bool = False) -> dict[str, Job]:
    seeds = {f"{task}/{condition}": count_seeds(task, condition) for task in SEEDS for condition in CONDITIONS}
    return list_by_seed(partial(measure_cell, quick=quick), seeds)


def measure_cell(name: str, condition: str, seed: int, quick: bool = False) -> Tree:
    task = open_task(name, seed, 96 if quick else 0)
    return measure(train(task, condition, seed, find_folder(name, condition, seed, quick))[0], task)


def find_folder(task: str, condition: str, seed: int, quick: bool = False) -> Path:
    """Return where a network is kept; other studies use these networks, too."""
    return Path("runs") / ("truth-quick" if quick else "truth") / task / f"{condition}-{seed}"


def open_task(name: str, seed: int, most: int = 0) -> Task:
    """Return a task; with ``most``, its first samples for one epoch, to see that everything runs."""
    return shorten(TASKS[name](seed), most)


def shorten(task: Task, most: int) -> Task:
    """Return the first samples of a task for one epoch, or all of it for 0."""
    if not most:
        return task
    tests = {key: data.first(most) for key, data in task.tests.items()}  # type: ignore[attr-defined]
    train, validation = (data.first(most) for data in (task.train, task.validation))  # type: ignore[attr-defined]
    return replace(task, train=train, validation=validation, tests=tests, settings={**task.settings, "epochs": 1})


def train(task: Task, condition: str, seed: int, folder: Path) -> tuple[xl.ExitNet, xl.FitResult]:
    return train_by(CONDITIONS[condition][0], task, seed, folder)


def train_by(loss: xl.EGTLoss | None, task: Task, seed: int, folder: Path) -> tuple[xl.ExitNet, xl.FitResult]:
    """Return a trained network, which goes on from its last epoch; without a loss, the plain one."""
    net = build_network(task, seed, exits=loss is not None)
    settings: dict[str, Any] = {"seed": seed, "out_dir": folder / "fit", "resume": True, "progress": False, **task.settings}
    with lock(folder):
        return net, xl.fit(net, task.train, watch(task), loss=loss or xl.EGTLoss(weight=0.0), **settings)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make other processes that want the same network wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "fit.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def watch(task: Task) -> SampleSet:
    """Return the validation samples that show how a training goes."""
    return task.validation.subset(torch.arange(min(WATCHED, len(task.validation))))


def measure(net: xl.ExitNet, task: Task) -> Tree:
    measured: Tree = {"cost": net.cost.tolist(), "tests": {}}
    for name, data in task.tests.items():
        trace = xl.collect(net, data, batch_size=250)
        report = xl.evaluate(trace, xl.Policy.never(net.num_exits))
        measured["tests"][name] = {"samples": len(data), "accuracy": [row.accuracy for row in report.exits]}
        measured["tests"][name]["right"] = [np.packbits(row.numpy()).tobytes().hex() for row in trace.correct.T]
        if "skill" not in measured and net.num_exits > 1:
            measured["skill"] = [row.consistency["cc"]["skill"] for row in report.exits[:-1]]
    if net.num_exits > 1:
        judged = judge(net, task, SAMPLES, ORACLE)
        measured["attention"] = list_shares_of(judged) | {"energy_in_mask": judged.energy_in_mask}
        if judged.binding is not None:
            cue = {} if judged.cue_swap is None else {"cue": judged.cue_swap.change}
            measured["swaps"] = {"binding": judged.binding.at(), "another": judged.binding.at(of="another"), **cue}
        for of in ("relevance", "evidence"):
            measured[of] = list_shares_of(judge(net, task, RELEVANCE, RELEVANCE, of=of))
        for baseline in net.input_spec.modality.baselines[1:]:
            measured[baseline] = list_shares_of(judge(net, task, RELEVANCE, RELEVANCE, baseline=baseline))
    return measured


def judge(net: xl.ExitNet, task: Task, samples: int, oracle: int, **kind: Any) -> xl.Faithfulness:
    """Judge one kind of map with one baseline on the task's first test."""
    data = next(iter(task.tests.values()))
    return measure_faithfulness(net, data, grid=task.grid, samples=samples, oracle_samples=oracle, **kind)


def list_shares_of(judged: xl.Faithfulness) -> Tree:
    area = judged.deletion_area
    shares = {name: getattr(judged, name) for name in SHARES}
    return shares | {"deletion_area_share": None if area is None else area.share}


LEAST_SHARE = {"scenes": 0.9, "pictures": 0.8, "vit": 0.7, "reviews": 0.7}  # of early exits beyond DEEP
LEAST_SKILL = {"scenes": 0.92, "pictures": 0.85, "reviews": 0.9}
DEEP = 0.3  # of the cost
FINAL_SHARE, ENERGY, DIFFERENCE = 0.9, 0.75, -0.3
EARLY = ((0.25, 0.75), (0.5, 0.92))  # cost up to which an exit stands, and its share of the final accuracy


def list_promises(runs: Runs) -> Iterator[Promise]:
    for task in SEEDS:
        ours, without, plain, control = (list_seeds(runs, f"{task}/{name}") for name in (EGT, WITHOUT, PLAIN, CONTROL))
        if min(map(len, (ours, without, plain))) < SEEDS[task]:
            continue
        yield from promise_task(task, ours, without, plain)
        if len(control) == count_seeds(task, CONTROL):
            yield from promise_control(task, ours, control)


def promise_task(task: str, ours: list[Tree], without: list[Tree], plain: list[Tree]) -> Iterator[Promise]:
    cost, first = ours[0]["cost"], next(iter(ours[0]["tests"]))
    last = len(cost) - 1
    deep = [k for k in range(last) if cost[k] > DEEP]
    for k in (*deep, last) if task in LEAST_SHARE else ():
        name, bar = ("final exit", FINAL_SHARE) if k == last else (f"exit {k}", LEAST_SHARE[task])
        shares = [share for share in list_shares(ours, k) if share is not None]
        what = f"{task}: faithfulness share, {name}"
        yield Promise.of_mean(f"truth|{task}|share|{k}", what, shares, ">=", bar, mean_error(ours, k))
    for k in range(last + 1):
        gain = subtract_shares(ours, without, k)
        if gain:
            seeds = f" ({len(gain)} of {len(ours)} seeds)" if len(gain) < len(ours) else ""
            what = f"{task}: faithfulness share, exit {k}, over the same without EGT{seeds}"
            error = math.hypot(mean_error(ours, k), mean_error(without, k))
            yield Promise.of_mean(f"truth|{task}|gain|{k}", what, gain, ">=", 0, error)
    if task in LEAST_SKILL:
        skill = [mean(run["skill"][k] for k in deep) for run in ours]
        what = f"{task}: skill, mean over early exits beyond 30 % of the cost"
        yield Promise.of_mean(f"truth|{task}|skill", what, skill, ">=", LEAST_SKILL[task])
    what = f"{task}: final exit minus plain, points"
    yield promise_difference(f"truth|{task}|final", what, (ours, plain), first, -1, DIFFERENCE)
    if task == "scenes":
        yield from promise_scenes(ours, without)
    for most, bar in EARLY if task == "pictures" else ():
        k = max(k for k in range(last + 1) if cost[k] <= most + 0.02)
        early, final = (list_accuracy(ours, first, i) for i in (k, -1))
        what = f"pictures: accuracy of the exit at {100 * most:.0f} % of the cost over the final exit's"
        yield promise_ratio(f"truth|pictures|early|{most}", what, early, final, count_samples(ours, first), bar)


def promise_ratio(key: str, what: str, early: list[float], final: list[float], samples: int, bar: float) -> Promise:
    error = math.hypot(share_error(early, samples), share_error(final, samples)) / mean(final)  # if early ones are no better
    return Promise.of_mean(key, what, [a / b for a, b in zip(early, final, strict=True)], ">=", bar, error)


def promise_difference(key: str, what: str, parts: tuple[list[Tree], list[Tree]], test: str, k: int, bar: float) -> Promise:
    """Promise a difference of accuracies: of the same answers where cells kept them, else of their means."""
    samples = count_samples(parts[0], test)
    kept = [[run["tests"][test].get("right", []) for run in part] for part in parts]
    if all(all(part) for part in kept):
        packed = np.array([[np.frombuffer(bytes.fromhex(right[k]), np.uint8) for right in part] for part in kept])
        ours, others = np.unpackbits(packed, axis=2, count=samples).astype(float)  # (R,N) each
        return Promise.of_both(key, what, 100 * (ours - others), ">=", bar)
    shares, others = (list_accuracy(part, test, k) for part in parts)
    return Promise.of_points(key, what, shares, others, samples, ">=", bar)


def promise_control(task: str, ours: list[Tree], control: list[Tree]) -> Iterator[Promise]:
    """Promise that maps pulled towards those of other samples lose, or agreement would mean nothing."""
    pairs = list(zip(ours, control, strict=False))  # the control has fewer seeds
    skill = [mean(a["skill"]) - mean(b["skill"]) for a, b in pairs]
    gains = [[gain for k in range(len(a["skill"])) for gain in subtract_shares([a], [b], k)] for a, b in pairs]
    shares = [mean(values) for values in gains if values]
    error = math.hypot(*(mean(mean_error(part, k) for k in range(len(ours[0]["skill"]))) for part in (ours, control)))
    for name, values, added in (("skill", skill, 0.0), ("faithfulness share", shares, error)) if shares else ():
        what = f"{task}: {name} of the early exits, over the control's with targets of other samples"
        yield Promise.of_mean(f"truth|{task}|control|{name}", what, values, ">=", 0, added)


def promise_scenes(ours: list[Tree], without: list[Tree]) -> Iterator[Promise]:
    for k in range(len(ours[0]["cost"])):
        energy = [run["attention"]["energy_in_mask"][k] for run in ours]
        what, error = f"scenes: energy in the object, exit {k}", share_error(energy, SAMPLES)
        yield Promise.of_mean(f"truth|scenes|energy|{k}", what, energy, ">=", ENERGY, error)
    for test in ours[0]["tests"]:
        what = f"scenes, {test}: exit 0 against without EGT, points"
        yield promise_difference(f"truth|scenes|exit0|{test}", what, (ours, without), test, 0, 0)


def count_samples(runs: Sequence[Tree], test: str) -> int:
    return int(runs[0]["tests"][test]["samples"])


def mean_error(runs: Sequence[Tree], k: int) -> float:
    """Return the standard error that the test samples leave to the mean of faithfulness shares."""
    errors = [run["attention"]["deletion_share_error"][k] for run in runs]
    return mean(error for error in errors if error is not None)


def list_shares(runs: Sequence[Tree], k: int) -> list[float | None]:
    return [run["attention"]["deletion_share"][k] for run in runs]


def subtract_shares(runs: Sequence[Tree], others: Sequence[Tree], k: int) -> list[float]:
    """Subtract run by run, without runs in which the oracle gained nothing over chance."""
    pairs = zip(list_shares(runs, k), list_shares(others, k), strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def list_accuracy(runs: Sequence[Tree], test: str, k: int) -> list[float]:
    return [run["tests"][test]["accuracy"][k] for run in runs]


def write_tables(runs: Runs) -> list[str]:
    lines = [line for task in SEEDS for line in write_task(runs, task)]
    return [*lines, *promise_table(list_promises(runs))]


def write_task(runs: Runs, task: str) -> list[str]:
    rows, tests = [], []
    for condition, (_, title) in CONDITIONS.items():
        if measured := list_seeds(runs, f"{task}/{condition}"):
            tests = list(measured[0]["tests"])
            cells = [join_means([run["tests"][test]["accuracy"] for run in measured], 1, 100) for test in tests]
            if "attention" in measured[0]:
                energy = [run["attention"]["energy_in_mask"] for run in measured]
                shares = ([run[maps]["deletion_share"] for run in measured] for maps in ("attention", "relevance"))
                cells += [join_part(measured, *column) for column in SWAPS.values()]
                cells += [join_means(values, 2) for values in ([run["skill"] for run in measured], *shares)]
                cells += ["" if None in energy else join_means(energy, 2)]
                cells += [join_part(measured, *column) for column in LATER.values()]
            rows.append([title, str(len(measured)), *cells, *[""] * (4 + len(SWAPS | LATER) + len(tests) - len(cells))])
    head = ["", "seeds", *(f"accuracy, {test}, %" for test in tests), *SWAPS]
    head += ["skill", "share of the oracle", "relevance's share", "energy in the object", *LATER]
    shown = [i for i, name in enumerate(head) if name not in SWAPS | LATER or any(row[i] for row in rows)]
    lines = table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return [f"**{TITLES[task]}**", "", *lines, ""] if rows else []


def join_part(measured: Sequence[Tree], part: str, name: str) -> str:
    """Join the means over the runs that measured it; earlier ones did not."""
    columns = [run[part][name] for run in measured if name in run.get(part, {})]
    return join_means(columns, 2) if columns else ""


STUDY = Study("truth", list_cells, list_promises, {"truth": write_tables}, processes=2)
