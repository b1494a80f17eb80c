"""What training costs: heads on a frozen backbone that runs once, and a step with EGT.

Cells NETWORK time an epoch of heads on a frozen backbone that runs once, against one that runs in every epoch (minutes in all).
Cells step-TASK time steps with EGT, and with ``rely_on="map"`` once its guide is trained, against steps without, on the tasks of ``truth``.
Seconds are those that one thread computed for, so that other processes do not count. Images are noise and bars, which changes no time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, show_interval, spread, table, take_turns, use_one_thread
from benchmarks.processes import CLASSES, make_set
from benchmarks.results import Runs, Tree
from benchmarks.tasks import TASKS, build_network
from exitlens.model.network import ExitNet
from exitlens.model.timing import interval
from exitlens.progress import show_progress
from exitlens.types.inputs import Inputs, can_be_channels_last, map_inputs
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.debiasing import Guide, ShallowExpert
from exitlens.workflow.training.fit import use_memory_format
from exitlens.workflow.training.frozen import keep_features
from exitlens.workflow.training.optimizer import apply_gradients, enter_training_mode, group_parameters, make_optimizer
from exitlens.workflow.training.run import TrainingRun, compute_gradients

BATCH = 64
STEP = "step-"
STEPS = {"egt": ("with EGT", 1.35), "rely": ('with EGT and `rely_on="map"`', 1.6)}  # words and bar
STEPS_A_ROUND = 4  # a whole number of turns of EGTLoss.every


@dataclass(frozen=True)
class Case:
    source: str
    pixels: int
    head: str = "context"
    samples: int = 128


FROZEN = {
    "efficientnet_lite0": Case("timm:tf_efficientnet_lite0", 128),
    "efficientnet_lite0-evidence": Case("timm:tf_efficientnet_lite0", 128, "evidence"),
    "resnet18": Case("torchvision:resnet18", 128),
    "small": Case("small", 40, samples=512),
}


def list_cells(quick: bool = False) -> dict[str, Job]:
    frozen = {name: partial(measure_frozen, case, 1 if quick else 3) for name, case in FROZEN.items()}
    tasks = ("pictures", "scenes", "vit", "reviews")
    return {**frozen, **{f"{STEP}{task}": partial(measure_steps, task, 1 if quick else 9) for task in tasks}}


def start_run(case: Case, train: xl.data.ImageSet, epochs: int) -> TrainingRun:
    torch.manual_seed(0)
    at: Any = ["layer1", "layer2", "layer3"] if case.source == "small" else 3
    net = xl.attach(case.source, at, CLASSES, train.first(1).inputs, head=case.head)  # type: ignore[arg-type]
    settings = TrainingSettings(epochs=epochs, batch_size=BATCH, learning_rate=1e-3, amp=False, freeze_backbone=True)
    return TrainingRun(net, xl.EGTLoss(), settings, workers=0)


def measure_frozen(case: Case, rounds: int = 3) -> Tree:
    """Time epochs of two runs in turn, one of which keeps the backbone's features; the first epoch of each is left out."""
    use_one_thread()
    train, val = (make_set(count, case.pixels) for count in (case.samples, 64))
    plain, kept = (start_run(case, train, rounds + 1) for _ in range(2))
    seconds: dict[str, list[float]] = {"every epoch": [], "kept": []}
    with use_memory_format(plain.net, True), use_memory_format(kept.net, True), show_progress(False) as bar:
        started = time.process_time()
        kept.frozen = keep_features(kept.net, kept.loss, kept.settings, train, val, bar=bar)
        once = time.process_time() - started
        for epoch in range(rounds + 1):
            for name, run in (("every epoch", plain), ("kept", kept)):
                started = time.process_time()
                run.save(run.train_epoch(epoch, train, val, bar))
                seconds[name].append(time.process_time() - started)
    size = sum(value.numel() * value.element_size() for value in kept.frozen.train.columns.values())
    weights = [torch.cat([p.detach().flatten() for p in run.net.heads.parameters()]) for run in (plain, kept)]
    ratios = [a / b for a, b in zip(seconds["every epoch"][1:], seconds["kept"][1:], strict=True)]
    middles = {name: spread(values[1:]) for name, values in seconds.items()}
    measured: Tree = {"samples": case.samples, "pixels": case.pixels, "seconds": middles, "seconds_once": round(once, 3)}
    measured |= {"speedup": spread(ratios, 2), "kb_a_sample": round(size / case.samples / 1e3, 1)}
    return measured | {"furthest_weight": float((weights[0] - weights[1]).abs().max())}


def measure_steps(name: str, rounds: int = 9) -> Tree:
    """Time steps on the first batch again and again: what a step costs does not depend on the samples."""
    use_one_thread()
    task = TASKS[name](0)
    chosen = {"batch_size": 64, "channels_last": True, "amp": True} | dict(task.settings)
    size = int(chosen["batch_size"])
    formats = {name: bool(chosen[name]) for name in ("amp", "channels_last")}
    settings = TrainingSettings(epochs=1, batch_size=size, learning_rate=1e-5, **formats)
    first = task.train.subset(torch.arange(size))
    net = build_network(task, 0, exits=True)
    kind = {"attends": net.has_self_attention, "of_images": net.info.modality.name == "image"}
    losses = {name: loss.for_network(**kind) for name, loss in (("egt", xl.EGTLoss()), ("without", xl.EGTLoss(weight=0.0)))}
    labels = torch.as_tensor(first.labels)
    works = {name: make_steps(net, loss, first.inputs, labels, settings) for name, loss in losses.items()}
    works["rely"] = make_steps(net, losses["egt"], first.inputs, labels, replace(settings, rely_on="map"))
    seconds = take_turns(works, rounds, warm_up=1)
    ratios = {
        name: interval([a / b for a, b in zip(seconds[name], seconds["without"], strict=True)]).to_list()
        for name in ("egt", "rely")
    }
    middle = {name: interval([value / STEPS_A_ROUND for value in values]).to_list() for name, values in seconds.items()}
    return {"batch_size": size, "every": losses["egt"].every, "seconds": middle, "ratio": ratios}


def make_steps(
    net: ExitNet, loss: xl.EGTLoss, inputs: Inputs, labels: Tensor, settings: TrainingSettings
) -> Callable[[int], None]:
    twin, inputs = copy.deepcopy(net), map_inputs(inputs, torch.clone)
    optimizer = make_optimizer(group_parameters(twin, settings))
    expert, guide = None, None
    if settings.rely_on == "map":
        leader = copy.deepcopy(net)
        if settings.channels_last and can_be_channels_last(net):
            leader = leader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        expert, guide = ShallowExpert(twin, settings), Guide(leader, bool(settings.amp))

    def take_steps(_: int) -> None:
        with use_memory_format(twin, settings.channels_last), enter_training_mode(twin, False):
            for step in range(STEPS_A_ROUND):
                given, *state = (inputs, 1.0, None) if guide is None else guide.exchange(inputs, labels)
                compute_gradients(
                    twin, optimizer, loss.at(step, STEPS_A_ROUND, 1)[0], [(given, labels, *state)], 0.5, settings, expert
                )
                apply_gradients(optimizer, 0.5, settings)
                if expert is not None:
                    expert.step(len(labels))

    return take_steps


def list_promises(runs: Runs) -> Iterator[Promise]:
    for name, measured in runs.items():
        if name.startswith(STEP):
            for condition, (words, bar) in STEPS.items():
                what = f"{name.removeprefix(STEP)}: a training step {words} over one without EGT"
                yield Promise.of_median(f"{name}|{condition}", what, measured["ratio"][condition], "<=", bar)
        else:
            what = f"{name}: an epoch on kept features of a frozen backbone, times as fast"
            yield Promise.of_median(f"frozen|{name}", what, measured["speedup"], ">=", 10)
            what = f"{name}: largest difference of a weight from training without kept features"
            yield Promise(f"frozen-equal|{name}", what, measured["furthest_weight"], "<=", 1e-3, exact=True)


def write_frozen(runs: Runs) -> list[str]:
    rows = []
    for name, measured in ((name, runs[name]) for name in FROZEN if name in runs):
        seconds = measured["seconds"]
        cells = [name.replace("-evidence", ", evidence heads"), f"{measured['samples']} of {measured['pixels']} px"]
        cells += [f"{seconds['every epoch'][0]:.2f}", f"{measured['seconds_once']:.2f}", f"{seconds['kept'][0]:.3f}"]
        cells += [show_interval(measured["speedup"], 1), f"{measured['kb_a_sample']:.0f}"]
        rows.append(cells)
    head = ["network", "images", "every epoch, s", "once, s", "an epoch on kept features, s"]
    return table([*head, "times as fast", "kB an image"], rows)


def write_steps(runs: Runs) -> list[str]:
    rows = []
    for name, measured in runs.items():
        if name.startswith(STEP):
            numbers = [str(measured["batch_size"]), str(measured["every"])]
            ratios = [show_interval(measured["ratio"][condition]) for condition in STEPS]
            rows.append([name.removeprefix(STEP), *numbers, f"{measured['seconds']['without'][0]:.3f}", *ratios])
    head = ["task", "batch", "EGT every so many steps", "without EGT, s"]
    return table([*head, *(f"{words}, times" for words, _ in STEPS.values())], rows)


STUDY = Study("training", list_cells, list_promises, {"frozen": write_frozen, "steps": write_steps})
