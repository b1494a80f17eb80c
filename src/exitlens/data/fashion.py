"""A class-balanced subset of Fashion-MNIST, and scenes made of it; the images are those of the extra ``demo``.

They are a distribution of their own, ``exitlens-demo-data`` (MIT licence, Zalando SE; see its ``LICENSE.fashion-mnist``).
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib.resources import files
from importlib.resources.abc import Traversable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exitlens.data.images import ImageSet
from exitlens.data.scenes import make_scenes
from exitlens.data.splits import SPLITS, Split
from exitlens.errors import DataError, InputError, import_extra

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_SEEDS = {"train": 11, "validation": 12, "calibration": 13, "test": 14}


def load_garments(split: Split) -> tuple[Tensor, Tensor]:
    """Images ``(N,28,28)`` ``uint8`` and labels ``(N,)`` of one split; the splits share no image.

    ``train`` (12,000) fits weights, ``validation`` (1,000) chooses checkpoints, ``calibration`` (2,000) chooses
    thresholds, ``test`` (3,000, from the original test files) is for reporting only.

    Raises:
        InputError: for another split name.
        MissingExtraError: without the package of the images (extra ``demo``).
        DataError: if a file is not the one that was built (checksum).
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
    folder = _find_images()
    manifest = json.loads((folder / "fashion.json").read_text())
    entry, columns = manifest["splits"][split], manifest["columns"]
    raw = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{entry['file']} of exitlens-demo-data is damaged (its checksum differs): install that package again"
        )
    sheet = np.array(Image.open(io.BytesIO(raw)))
    rows = sheet.shape[0] // 28
    garments = sheet.reshape(rows, 28, columns, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    return torch.from_numpy(garments.copy()), torch.tensor([int(digit) for digit in entry["labels"]])


def _find_images() -> Traversable:
    return files(import_extra("exitlens_demo_data", "demo", "a data set of garments (fashion, scenes)"))


def load_fashion(split: Split) -> ImageSet:
    """The garments of one split as grey ``(N,1,28,28)`` images on black.

    Examples:
        >>> data = xl.load_fashion("validation")
        >>> data.images.shape, data.classes[0]
        (torch.Size([1000, 1, 28, 28]), 'T-shirt')
    """
    garments, labels = load_garments(split)
    return ImageSet(garments[:, None], labels, CLASSES)


def load_scenes(
    split: Split,
    *,
    background_agreement: float = 0.8,
    seed: int = 0,
    size: int = 40,
    palette: str = "standard",
    limit: int | None = None,
) -> ImageSet:
    """Scenes of one split's garments (see :func:`exitlens.data.scenes.make_scenes`); every split has its own draws.

    Args:
        split: ``train``, ``validation``, ``calibration`` or ``test``.
        background_agreement: in [0, 1], see :func:`~exitlens.data.scenes.make_scenes`.
        seed: one number for all splits; each split derives its own from it.
        size: height and width in pixels.
        palette: ``"standard"`` or ``"unseen"``.
        limit: only the first ``limit`` garments (for quick trials).

    Examples:
        >>> xl.load_scenes("test", limit=100).images.shape
        torch.Size([100, 3, 40, 40])
    """
    garments, labels = load_garments(split)
    return make_scenes(
        garments[:limit],
        labels[:limit],
        CLASSES,
        background_agreement=background_agreement,
        seed=1000 * seed + _SEEDS[split],
        size=size,
        palette=palette,
    )
