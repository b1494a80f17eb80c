"""One run: trains a network, and measures answers, agreement and truth on test data."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.truth.conditions import LOSSES, TITLES
from benchmarks.truth.tasks import Task, build_network
from exitlens.data.splits import SampleSet
from exitlens.workflow.faithfulness import faithfulness

WATCHED = 500  # validation samples that tell how a training goes
SAMPLES, ORACLE, RELEVANCE = 1000, 300, 100  # for faithfulness; of these for the occlusion oracle; for relevance maps
KEPT = ("deletion", "deletion_random", "deletion_oracle", "deletion_share", "deletion_share_error", "insertion_share")
MAPS = ("randomised_cc", "energy_in_mask", "pointing_game")


def run(task: Task, condition: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains (or goes on training) and measures one network."""
    net, done = train(task, condition, seed, folder)
    started = time.perf_counter()
    found = measure(net, task)
    facts = {"title": TITLES[condition], "epochs": len(done.history), "train_seconds": round(done.seconds)}
    return {**facts, "measure_seconds": round(time.perf_counter() - started), **found}


def train(task: Task, condition: str, seed: int, folder: Path) -> tuple[xl.ExitNet, xl.FitResult]:
    """A trained network: goes on from the last whole epoch that is there; other processes that want the same one wait."""
    loss = LOSSES[condition]
    net = build_network(task, seed, exits=loss is not None)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "fit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        how: dict[str, Any] = {"seed": seed, "out_dir": folder / "fit", "resume": True, "progress": False, **task.how}
        done = xl.fit(net, task.train, watch(task), loss=loss or xl.EGTLoss(weight=0.0), **how)
    return net, done


def watch(task: Task) -> SampleSet:
    """The validation samples that tell how a training goes."""
    return task.validation.subset(torch.arange(min(WATCHED, len(task.validation))))


def measure(net: xl.ExitNet, task: Task) -> dict[str, Any]:
    """Accuracy on every test set; agreement and truth on the first."""
    found: dict[str, Any] = {"cost": net.cost.tolist(), "head_share": net.head_share, "tests": {}}
    for name, data in task.tests.items():
        report = xl.evaluate(xl.collect(net, data, batch_size=250), xl.Policy.never(net.num_exits))
        found["tests"][name] = {"samples": len(data), "accuracy": [row.accuracy for row in report.exits]}
        if "skill" not in found and net.num_exits > 1:
            cc = [row.consistency["cc"] for row in report.exits[:-1]]
            found |= {
                key: [one[field] for one in cc] for key, field in (("cc", "value"), ("null", "null"), ("skill", "skill"))
            }
    if net.num_exits > 1:
        test = next(iter(task.tests.values()))
        attention = faithfulness(net, test, samples=SAMPLES, oracle_samples=ORACLE, grid=task.grid).to_dict()
        few = {"samples": RELEVANCE, "oracle_samples": RELEVANCE}
        relevance = faithfulness(net, test, of="relevance", grid=task.grid, **few).to_dict()
        found["attention"] = {name: attention[name] for name in (*KEPT, *MAPS)}
        found["relevance"] = {name: relevance[name] for name in KEPT}
    return found
