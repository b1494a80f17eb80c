"""The networks that are timed, and their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.data.demo.garments import CLASSES, load_garments
from exitlens.types import Preprocess

BUNDLE = Path("runs/demo-full/bundle")


@dataclass(frozen=True)
class Network:
    """Where its backbone comes from, and the size of its images."""

    source: str
    pixels: int
    stream: int = 0  # images of the stream that is timed as well

    def build(self) -> tuple[nn.Module, xl.ExitNet, Tensor, xl.Policy | None]:
        """The plain backbone, the network with three early exits placed by time, images, and a policy if it is trained."""
        torch.manual_seed(0)
        if self.source == "bundle":
            net, policy = xl.load(BUNDLE)
            plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.input_shape[0])
            return plain, net, make_scenes(net, 1024), policy
        plain = xl.build_backbone(self.source, 10)
        images = torch.randn(128, 3, self.pixels, self.pixels)
        return plain, xl.attach(plain, 3, 10, images[:1], placement="time").eval(), images, None


NETWORKS = {
    "small": Network("bundle", 40, stream=10_000),
    "resnet18": Network("torchvision:resnet18", 224, stream=10_000),
    "resnet50": Network("torchvision:resnet50", 224),
    "deit_tiny": Network("timm:deit_tiny_patch16_224", 224),
}


def make_scenes(net: xl.ExitNet, count: int, seed: int = 99) -> Tensor:
    """Garments of the test split in scenes that were not seen in training or calibration."""
    garments, labels = load_garments("test")
    rows = torch.arange(count) % len(garments)
    made = xl.make_scenes(garments[rows], labels[rows], CLASSES, background_agreement=0.8, seed=seed)
    assert isinstance(net.info.preprocess, Preprocess)
    return net.info.preprocess.normalise(made.images)
