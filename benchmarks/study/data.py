"""The data sets of the study, each in disjoint splits; another seed gives other scenes, other draws and another order."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.data.demo.garments import CLASSES, load_garments, make_scenes
from exitlens.data.sets import ImageSet
from exitlens.data.splits import Split

ROOTS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw"))
SMALL_TRAIN, SMALL_TEST, SMALL_CLASSES = 1363, 1364, 9  # sizes of the paper's data set (arXiv 2601.08891)


@dataclass(frozen=True)
class Splits:
    """Train fits weights, validation chooses losses' weights (in sweeps only), calibration thresholds, tests report."""

    train: ImageSet
    validation: dict[str, ImageSet]
    calibration: ImageSet
    tests: dict[str, ImageSet]
    epochs: int
    batch_size: int = 64


def _scene_sets(
    split: Split, seed: int, draws: int, agreement: float, most: int | None, palette: str = "standard", keep: int = 0
) -> ImageSet:
    """Every garment of a split in ``draws`` scenes; of the first ``keep`` classes only, if given."""
    garments, labels = (t[:most] for t in load_garments(split))
    if keep:
        garments, labels = garments[labels < keep], labels[labels < keep]
    names = CLASSES[: keep or len(CLASSES)]
    base = 10_000 * seed + {"train": 100, "validation": 200, "calibration": 300, "test": 400}[split]
    parts = [
        make_scenes(garments, labels, names, background_agreement=agreement, seed=base + draw, palette=palette)
        for draw in range(draws)
    ]
    masks = [p.masks for p in parts if p.masks is not None]
    return ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), names, torch.cat(masks))


def scenes(seed: int, most: int | None = None) -> Splits:
    """12,000 scenes of 40 pixels; in 80 % of them the background's colour tells the class."""
    return Splits(
        _scene_sets("train", seed, 1, 0.8, most),
        {
            "agreeing": _scene_sets("validation", seed, 3, 0.8, most),
            "disagreeing": _scene_sets("validation", seed, 3, 0.1, most),
        },
        _scene_sets("calibration", seed, 1, 0.8, most),  # every garment once: certificates need independent samples
        {
            "agreeing": _scene_sets("test", seed, 2, 0.8, most),
            "disagreeing": _scene_sets("test", seed, 2, 0.1, most),
            "unseen": _scene_sets("test", seed, 1, 0.1, most, "unseen"),
        },
        epochs=6,
    )


def small(seed: int, most: int | None = None) -> Splits:
    """The paper's sizes: 9 classes, 1,363 scenes to train on, 1,364 to test on; drawn anew for every seed."""
    rng = torch.Generator().manual_seed(seed)

    def draw(data: ImageSet, count: int) -> ImageSet:
        return data.subset(torch.randperm(len(data), generator=rng)[:count])

    k = SMALL_CLASSES
    test = torch.randperm(2700 if most is None else most // 2, generator=rng)[:SMALL_TEST]
    return Splits(
        draw(_scene_sets("train", seed, 1, 0.8, most, keep=k), SMALL_TRAIN),
        {
            "agreeing": _scene_sets("validation", seed, 1, 0.8, most, keep=k),
            "disagreeing": _scene_sets("validation", seed, 1, 0.1, most, keep=k),
        },
        _scene_sets("calibration", seed, 1, 0.8, most, keep=k),
        {
            "agreeing": _scene_sets("test", seed, 1, 0.8, most, keep=k).subset(test),
            "disagreeing": _scene_sets("test", seed, 1, 0.1, most, keep=k).subset(test),
        },
        epochs=30,
        batch_size=32,
    )


def fashion(seed: int, most: int | None = None) -> Splits:
    """Fashion-MNIST as it is: 60,000 images (of which 5,000 choose thresholds and 1,000 nothing here), 10,000 to test on."""
    root = next((r for r in ROOTS if r.exists()), None)
    if root is None:
        raise RuntimeError(f"Fashion-MNIST is in none of {[str(r) for r in ROOTS]}: apt-get install dataset-fashion-mnist")
    images, labels = _idx(root, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = [ImageSet(images[rows], labels[rows], CLASSES) for rows in order.split([54_000, 1_000, 5_000])]
    return Splits(parts[0], {"test": parts[1]}, parts[2], {"test": ImageSet(*_idx(root, "t10k"), CLASSES)}, epochs=6)


def _idx(root: Path, part: str) -> tuple[Tensor, Tensor]:
    raw = [
        np.frombuffer(gzip.decompress((root / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=offset).copy()
        for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
    ]
    return torch.from_numpy(raw[0]).view(-1, 1, 28, 28), torch.from_numpy(raw[1]).long()


def digits(seed: int, most: int | None = None) -> Splits:
    """scikit-learn's 1,797 handwritten digits of 8 pixels, enlarged to 32."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False).round().clamp(0, 255).to(torch.uint8)
    labels, names = torch.from_numpy(found.target).long(), tuple(str(digit) for digit in range(10))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = [ImageSet(images[rows], labels[rows], names) for rows in order.split([1000, 97, 300, 400])]
    return Splits(parts[0], {"test": parts[1]}, parts[2], {"test": parts[3]}, epochs=20, batch_size=32)


DATA: dict[str, Callable[..., Splits]] = {"scenes": scenes, "small": small, "digits": digits, "fashion": fashion}


def cut_splits(name: str, seed: int, most: int) -> Splits:
    """The first ``most`` images of everything, one epoch: to see that all of it runs."""
    splits = DATA[name](seed, most)

    def cut(sets: dict[str, ImageSet]) -> dict[str, ImageSet]:
        return {key: data.first(most) for key, data in sets.items()}

    return Splits(
        splits.train.first(most),
        cut(splits.validation),
        splits.calibration.first(most),
        cut(splits.tests),
        epochs=1,
        batch_size=32,
    )
