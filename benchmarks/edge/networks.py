"""The networks that are timed: the demo's, and three backbones of usual size with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.backbones.edge import wake
from benchmarks.performance.networks import make_scenes

BUNDLE = Path("runs/demo-full/bundle")
SHARES = (0.5, 0.3, 0.0, 0.2)  # of the samples, by the exit that answers
UNREACHABLE = 2.0  # a threshold whose exit is computed, but never answers


@dataclass(frozen=True)
class Timed:
    """A backbone, where its exits stand, and the size of its images; ``source`` "bundle": the demo's network."""

    source: str
    pixels: int
    at: tuple[str, ...] = ()

    def build(self) -> tuple[nn.Module, xl.ExitNet, Tensor]:
        """The plain backbone, the network with exits, and images; all in evaluation mode."""
        torch.manual_seed(0)
        if self.source == "bundle":
            net, _ = xl.load(BUNDLE)
            plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.input_shape[0])
            return plain.eval(), net, make_scenes(net, 512)
        images = torch.randn(64, 3, self.pixels, self.pixels)
        net = xl.attach(xl.build_backbone(self.source, 10), self.at, 10, images[:1])
        wake(net)
        return xl.build_backbone(self.source, 10).eval(), net, images


RESNET, BLOCKS = ("layer1", "layer2", "layer3"), ("blocks.2", "blocks.5", "blocks.8")
NETWORKS = {
    "demo": Timed("bundle", 40),
    "resnet18": Timed("torchvision:resnet18", 160, RESNET),
    "resnet50": Timed("torchvision:resnet50", 224, RESNET),
    "deit_tiny": Timed("timm:deit_tiny_patch16_224", 224, BLOCKS),
}


def force_shares(net: xl.ExitNet, images: Tensor, shares: tuple[float, ...] = SHARES) -> xl.Policy:
    """A policy by which these images leave in these shares: thresholds in the middle of the gaps between their scores."""
    with net.open_engine() as engine:
        logits = [one for one, _ in engine.compute_outputs(engine.enter(net.check_input(images)))]
    temperatures = tuple(max(float(one.std()), 1e-6) for one in logits)
    left, thresholds, owed = torch.arange(len(images)), list[float](), 0.0
    for one, share, temperature in zip(logits, shares[:-1], temperatures, strict=False):
        owed += share * len(images)
        count = min(round(owed), len(left))
        owed -= count
        scores = (one[left] / temperature).softmax(1).amax(1)
        ordered, order = scores.sort(descending=True)
        if count == 0:
            thresholds.append(UNREACHABLE)
        elif count == len(left):
            thresholds.append(-1.0)
        else:
            thresholds.append(float((ordered[count - 1] + ordered[count]) / 2))
        left = left[order[count:]]
    return xl.Policy(tuple(thresholds), temperatures=temperatures, network=net.identity())
