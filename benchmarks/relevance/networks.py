"""The networks whose maps are compared, with test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import exitlens as xl
from benchmarks.pictures.train import build_network, load_pictures
from exitlens.delivery.bundle import load
from exitlens.delivery.run_directory import load_samples
from exitlens.io import read_tensors
from exitlens.types.inputs import draw_samples

LITE0 = "truth/pictures/egt-0/fit/best.safetensors"  # the network of `make pictures`


@dataclass(frozen=True)
class Subject:
    """One network and what it is judged on."""

    title: str
    net: xl.ExitNet
    images: xl.ImageSet


def load_demo(runs: Path, count: int) -> Subject:
    """The network of `make demo-full`, on scenes it was not trained on."""
    net, _ = load(runs / "demo-full")
    images = load_samples(runs / "demo-full", net, "test")
    assert isinstance(images, xl.ImageSet)
    return Subject("small network of `make demo-full`, 40 px", net, choose(images, count))


def load_lite0(runs: Path, count: int) -> Subject:
    """EfficientNet-Lite0 with exits, fine-tuned on pictures of drawings by `make pictures`."""
    images = load_pictures(runs / "pictures" / "data", "test").images
    net = build_network("exits", 0, images.classes, images.first(1).inputs)
    tensors, _ = read_tensors(runs / LITE0)
    net.load_state_dict({name.removeprefix("net."): value for name, value in tensors.items()})
    return Subject("EfficientNet-Lite0 of `make pictures`, 128 px", net.eval(), choose(images, count))


def choose(images: xl.ImageSet, count: int) -> xl.ImageSet:
    """So many of them, drawn at random."""
    return images.subset(draw_samples(len(images), count, 0).sort().values)


NETWORKS: dict[str, tuple[Callable[[Path, int], Subject], str, int]] = {  # how to load it, what it needs, images
    "demo": (load_demo, "demo-full/data.json", 400),
    "lite0": (load_lite0, LITE0, 100),
}
