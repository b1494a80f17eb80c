"""One training run, alone or as one of the processes that torchrun starts: python -m benchmarks.processes.train ..."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

import exitlens as xl
from exitlens.model.backbones.small import SmallResNet

CLASSES = 10
SIZES = {"small": 40, "resnet18": 128, "resnet18-96": 96}  # 128 pixels are what `exitlens fit` takes
IMAGES = {"small": 640, "resnet18": 256, "resnet18-96": 256}


def replace_batch_norm(module: nn.Module) -> None:
    """Group norm in place of batch norm: what comes out does not depend on how a batch is split."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        replace_batch_norm(child)


def make_set(count: int, size: int) -> xl.ImageSet:
    """Coloured noise, brighter in a place that the class says."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randint(0, 120, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    width = size // CLASSES
    for i, label in enumerate(labels.tolist()):
        pixels[i, label % 3, :, label * width : (label + 1) * width] += 100
    return xl.ImageSet(pixels, labels, tuple(map(str, range(CLASSES))))


def make_net(name: str, batch_norm: bool, size: int) -> xl.ExitNet:
    torch.manual_seed(0)
    backbone = SmallResNet(CLASSES) if name == "small" else resnet18(num_classes=CLASSES)
    if not batch_norm:
        replace_batch_norm(backbone)
    head = "context" if batch_norm else "evidence"  # the neck of the other has batch norm
    return xl.attach(backbone, ["layer1", "layer2", "layer3"], CLASSES, torch.zeros(1, 3, size, size), head=head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--no-batch-norm", action="store_true")
    parser.add_argument("--double", action="store_true", help="in double precision")
    given = parser.parse_args()
    size = SIZES[given.net]
    data = make_set(given.images or IMAGES[given.net], size)
    net = make_net(given.net, not given.no_batch_norm, size)
    kind = torch.float64 if given.double else torch.float32
    images = data.first(64).inputs.to(kind)
    val = [
        (images[:32], data.labels[:32]),
        (images[32:], data.labels[32:64]),
    ]  # whole batches are shared: one for each process
    how = {"epochs": given.epochs, "out_dir": given.out, "batch_size": 64, "amp": False, "progress": False}
    xl.fit(net.to(kind), data, val, augment=lambda images: images.to(kind), **how)


if __name__ == "__main__":
    main()
