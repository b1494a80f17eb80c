"""Processor time of a training step with exits and without, taken in turns in one process.

Processor time, since what else the machine does changes it little; on one thread it is what a clock shows on an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exitlens as xl
from benchmarks.pictures.train import BACKBONE, SIZE, build_network
from exitlens.model.backbones.build import build_backbone
from exitlens.model.timing import describe_machine
from exitlens.workflow.training.optimizer import make_optimizer

BATCH, ROUNDS, CLASSES = 64, 9, 16


def time_steps(rounds: int = ROUNDS, batch: int = BATCH, size: int = SIZE) -> dict[str, Any]:
    """The plain network is the backbone as its library makes it, trained by plain PyTorch."""
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,))
    loss = xl.EGTLoss().for_network(attends=False)
    exits = build_network("exits", 0, [str(i) for i in range(CLASSES)], images[:1])
    steps = {
        "plain": prepare(build_backbone(BACKBONE, CLASSES), lambda logits: F.cross_entropy(logits.float(), labels), images),
        "exits": prepare(exits, lambda outputs: loss(outputs, labels, 0.5).total, images, exits.with_separate_maps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            steps[name]()
            if turn >= 2:  # the first ones allocate memory
                seconds[name].append(time.process_time() - started)
    ratios = sorted(e / p for e, p in zip(seconds["exits"], seconds["plain"], strict=True))
    spread = [median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
    return {
        "machine": describe_machine(torch.get_num_threads()),
        "batch": batch,
        "rounds": rounds,
        "ratio": spread,
        **{f"{name}_seconds": median(taken) for name, taken in seconds.items()},
    }


def prepare(
    net: nn.Module, measure: Callable[[Any], Tensor], images: Tensor, run: Callable[[Tensor], Any] | None = None
) -> Callable[[], None]:
    """A training step in bfloat16 and channels_last with AdamW; ``run``: what is called in place of the network."""
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer([{"params": list(net.parameters()), "lr": 1e-4}])

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = (run or net)(images)
        optimizer.zero_grad(set_to_none=True)
        measure(outputs).backward()
        optimizer.step()

    return step
