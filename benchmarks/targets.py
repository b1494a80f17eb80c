"""What maps are pulled towards: trainings with several targets, as long as usual and longer, on validation data alone.

Cells are TASK/TARGET/EPOCHS-SEED; 0 epochs are the task's own number. Seeds are counted from 100, so that they are none of ``truth``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import mean

import torch

import exitlens as xl
from benchmarks import tasks
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, table
from benchmarks.results import Runs, Tree, list_seeds
from exitlens.data.sets import SampleSet
from exitlens.functional.maps import entropy

FIRST_SEED, SEEDS = 100, 3
SAMPLES, ORACLE = 500, 200
DEFAULT, SPREAD = "default", "spread"
TARGETS: dict[str, tuple[str, xl.EGTLoss]] = {
    DEFAULT: ("the default", xl.EGTLoss()),
    SPREAD: ("the same with `spread=0.3`", xl.EGTLoss(spread=0.3)),
    "relevance": ("relevance", xl.EGTLoss(target="relevance")),
}
LONG = {"digits": ("10", "30", "100")}  # epochs
SHORT = ("digits", "pictures", "scenes")
DEEP, SHARE = 0.3, 0.7  # share of the cost from which exits are judged, and the least share of the oracle there
WITHIN = 0.1  # share by which maps may differ after the longest training from those after the shortest
WORDS = {"entropy": "entropy of maps, nats", "binding": "binding at 20 %"}
COLUMNS = {"share": "share of the oracle", **WORDS, "another": "with another's map", "inside": "map on the object"}


def list_cells(quick: bool = False) -> dict[str, Job]:
    long = {f"{task}/{target}/{epochs}": SEEDS for task in LONG for target in (DEFAULT, SPREAD) for epochs in LONG[task]}
    short = {f"{task}/{target}/0": SEEDS for task in SHORT for target in TARGETS}
    return list_by_seed(partial(measure_cell, quick=quick), long | short)


def measure_cell(name: str, target: str, epochs: str, seed: int, quick: bool = False) -> Tree:
    task, seed = tasks.TASKS[name](FIRST_SEED + seed), FIRST_SEED + seed
    net = tasks.build_network(task, seed, exits=True)
    length = {"epochs": int(epochs)} if int(epochs) else {}
    train, validation = task.train, task.validation
    if quick:
        train, validation = (data.subset(torch.arange(96)) for data in (train, validation))
        length = {"epochs": 1}
    settings = {"seed": seed, "progress": False, **task.settings} | length
    result = xl.fit(net, train, validation, loss=TARGETS[target][1], **settings)
    judged = xl.measure_faithfulness(net, validation, samples=SAMPLES, oracle_samples=16 if quick else ORACLE)
    if judged.binding is None:
        raise ValueError(f"expected binding on {len(validation)} samples, got none")
    inside = {} if judged.energy_in_mask is None else {"inside": judged.energy_in_mask}
    return inside | {
        "accuracy": list(result.history[-1]["accuracy"]),
        "share": judged.deletion_share,
        "cost": net.cost.tolist(),
        "entropy": measure_entropy(net, validation.subset(torch.arange(min(SAMPLES, len(validation))))),
        "binding": judged.binding.at(0.2),
        "another": judged.binding.at(of="another"),
    }


@torch.no_grad()
def measure_entropy(net: xl.ExitNet, data: SampleSet) -> list[float]:
    """Return the mean entropy of each exit's maps, in nats."""
    parts = [net.eval()(data.subset(rows).inputs) for rows in torch.arange(len(data)).split(100)]
    maps = [torch.cat([outputs[k].attention for outputs in parts]) for k in range(net.num_exits)]
    return [entropy(each).mean().item() for each in maps]


def list_promises(runs: Runs) -> Iterator[Promise]:
    for (task, epochs), target in itertools.product(LONG.items(), (DEFAULT, SPREAD)):
        short, long = (list_seeds(runs, f"{task}/{target}/{length}") for length in (epochs[0], epochs[-1]))
        for part, words in WORDS.items() if short and long else ():
            for k in range(len(short[0][part])):
                ratios = [after[part][k] / before[part][k] for before, after in zip(short, long, strict=False)]
                title = "spread 0.3" if target == SPREAD else TARGETS[target][0]
                what = f"{task}, {title}: exit {k}, {words}, after {epochs[-1]} epochs over that after {epochs[0]}"
                yield Promise.of_mean(f"targets|{task}|{target}|{k}|{part}|least", what, ratios, ">=", 1 - WITHIN)
                if part == "entropy":
                    yield Promise.of_mean(f"targets|{task}|{target}|{k}|{part}|most", what, ratios, "<=", 1 + WITHIN)
    shares = {task: find_shares(runs, task) for task in SHORT}
    for left_out in SHORT if all(len(part) == len(TARGETS) for part in shares.values()) else ():
        best = choose_target([shares[task] for task in SHORT if task != left_out])
        what = f"{left_out}, target chosen by the other sets ({TARGETS[best][0]}): least share of an exit beyond {100 * DEEP:.0f} % of the cost"
        yield Promise.of_mean(f"targets|{left_out}|chosen", what, shares[left_out][best], ">=", SHARE)


def find_shares(runs: Runs, task: str) -> dict[str, list[float]]:
    """Return each target's least share of the oracle among the exits beyond ``DEEP`` of the cost, of every seed."""
    measured = {target: list_seeds(runs, f"{task}/{target}/0") for target in TARGETS}
    return {
        target: [min(share for share, cost in zip(run["share"], run["cost"], strict=True) if cost >= DEEP) for run in seeds]
        for target, seeds in measured.items()
        if seeds
    }


def choose_target(sets: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Return the target with the highest share on the set that it does worst on."""
    return max(TARGETS, key=lambda target: min(mean(shares[target]) for shares in sets))


def write_tables(runs: Runs) -> list[str]:
    lines = []
    for task in SHORT:
        rows = []
        for target, (title, _) in TARGETS.items():
            for epochs in (*LONG.get(task, ()), "0"):
                if measured := list_seeds(runs, f"{task}/{target}/{epochs}"):
                    accuracy = join_means([run["accuracy"] for run in measured], 1, 100)
                    values = [
                        join_means([run[part] for run in measured], 2) if part in measured[0] else "" for part in COLUMNS
                    ]
                    rows.append([title, "the task's own" if epochs == "0" else epochs, accuracy, *values])
        head = ["target", "epochs", "accuracy, %", *COLUMNS.values()]
        lines += [f"**{tasks.TITLES[task]}**", "", *table(head, rows), ""] if rows else []
    return [*lines, *promise_table(list_promises(runs))]


STUDY = Study("targets", list_cells, list_promises, {"targets": write_tables})
