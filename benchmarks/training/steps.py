"""Times training steps with EGT against those of the same network without, on the tasks of benchmarks.truth.

Usage: python -m benchmarks.training.steps [--only TASK ...] [--again]

In turn in one process, on copies of one network; seconds that one thread computed for. What is there already is skipped (a
minute each). Results: benchmarks/results/training.csv; table: docs/guides/training.md.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import exitlens as xl
from benchmarks.training.runs import STEP, TRAINING
from benchmarks.truth.jobs import start_worker
from benchmarks.truth.tasks import TASKS, Task, build_network
from exitlens.model.network import ExitNet
from exitlens.model.timing import interval
from exitlens.types.inputs import Inputs, map_inputs
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.optimizer import group_parameters, make_optimizer
from exitlens.workflow.training.step import enter_training_mode, take_step, use_memory_format

TIMED = ("scenes", "pictures", "vit", "reviews")
ROUND = 4  # steps of each in a round: a whole number of turns of EGTLoss.every


def measure(task: Task, rounds: int = 9) -> dict[str, Any]:
    """The first batch again and again: what a step costs does not depend on the samples."""
    how = {"batch_size": 64, "channels_last": True, "amp": True} | dict(task.how)
    size = int(how["batch_size"])
    settings = TrainingSettings(
        epochs=1, batch_size=size, learning_rate=1e-5, amp=bool(how["amp"]), channels_last=bool(how["channels_last"])
    )
    first = task.train.subset(torch.arange(size))
    net = build_network(task, 0, exits=True)
    kind = {"attends": net.has_attention, "of_images": net.info.modality.name == "image"}
    egt, without = (loss.for_network(**kind) for loss in (xl.EGTLoss(), xl.EGTLoss(weight=0.0)))
    labels = torch.as_tensor(first.labels)
    works = {
        name: _make_work(net, loss, first.inputs, labels, settings) for name, loss in (("egt", egt), ("without", without))
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if i:  # the first warms up
                seconds[name].append((time.process_time() - started) / ROUND)
    ratios = [a / b for a, b in zip(seconds["egt"], seconds["without"], strict=True)]
    found = {name: interval(each).to_list() for name, each in seconds.items()}
    return {"batch_size": size, "every": egt.every, "seconds": found, "ratio": interval(ratios).to_list()}


def _make_work(
    net: ExitNet, loss: xl.EGTLoss, inputs: Inputs, labels: torch.Tensor, settings: TrainingSettings
) -> Callable[[], None]:
    twin, inputs = copy.deepcopy(net), map_inputs(inputs, torch.clone)
    optimizer = make_optimizer(group_parameters(twin, settings))

    def work() -> None:
        with use_memory_format(twin, settings.channels_last), enter_training_mode(twin, False):
            for step in range(ROUND):
                take_step(twin, optimizer, loss.at_step(step), [(inputs, labels)], 0.5, settings)

    return work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=TIMED)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args(arguments)
    start_worker()
    for name in given.only or TIMED:
        if given.again or f"{STEP}{name}" not in TRAINING:
            TRAINING.add(f"{STEP}{name}", found := measure(TASKS[name](0)))
            print(name, found, flush=True)
    TRAINING.fold()


if __name__ == "__main__":
    main()
