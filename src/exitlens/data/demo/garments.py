"""Garments of Fashion-MNIST, a class-balanced subset, and scenes: each at a random place on a coloured, textured background.

The images are those of the extra ``demo``, a distribution of its own: ``exitlens-demo-data`` (MIT licence, Zalando SE; see
its ``LICENSE.fashion-mnist``). A scene's background colour is the shortcut that a shallow exit likes to take: with
``background_agreement`` 0.8 it names the class in 80 % of the scenes; with 1/10 (ten classes) it says nothing.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
from functools import partial
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from exitlens.data.sets import ImageSet
from exitlens.data.splits import Split, check_split
from exitlens.errors import DataError, InputError, import_extra

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PALETTES = {"standard": (0.0, 0.62), "unseen": (0.05, 0.30)}  # hue offset, saturation
_OBJECT_LEVEL = 0.08  # garment pixels brighter than this (of 1) belong to the object
_SEEDS = {"train": 11, "validation": 12, "calibration": 13, "test": 14}


def load_garments(split: Split) -> tuple[Tensor, Tensor]:
    """Load images ``(N,28,28)`` ``uint8`` and labels ``(N,)`` of one split; the splits share no image.

    ``train`` has 12,000, ``validation`` 1,000, ``calibration`` 2,000, and ``test`` 3,000 from the original test files.
    """
    check_split(split)
    folder = files(import_extra("exitlens_demo_data", "demo", "a data set of garments (fashion, scenes)"))
    manifest = json.loads((folder / "fashion.json").read_text())
    entry, columns = manifest["splits"][split], manifest["columns"]
    raw = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        problem = f"{entry['file']} of exitlens-demo-data is damaged (its checksum differs)"
        raise DataError(f"{problem}. Fix: install that package again")
    sheet = np.array(Image.open(io.BytesIO(raw)))
    rows = sheet.shape[0] // 28
    garments = sheet.reshape(rows, 28, columns, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    return torch.from_numpy(garments.copy()), torch.tensor([int(digit) for digit in entry["labels"]])


def load_fashion(split: Split) -> ImageSet:
    """Load the garments of one split as grey images ``(N,1,28,28)`` on black, see :func:`load_garments`.

    Examples:
        >>> xl.demo.load_fashion("validation").images.shape
        torch.Size([1000, 1, 28, 28])
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
    """Make scenes of one split's garments, see :func:`make_scenes`; ``seed`` is one number for all splits.

    ``limit`` takes only the first garments, for quick trials.

    Examples:
        >>> xl.demo.load_scenes("test", limit=100).images.shape
        torch.Size([100, 3, 40, 40])
    """
    garments, labels = (values[:limit] for values in load_garments(split))
    make = partial(make_scenes, background_agreement=background_agreement, size=size, palette=palette)
    return make(garments, labels, CLASSES, seed=1000 * seed + _SEEDS[split])


def make_scenes(
    garments: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    background_agreement: float,
    seed: int,
    size: int = 40,
    scale: tuple[float, float] = (0.45, 0.7),
    palette: str = "standard",
) -> ImageSet:
    """Paste garments into scenes; the same arguments give the same pixels.

    Args:
        garments: ``(N,28,28)`` ``uint8``, bright garment on black.
        labels: ``(N,)`` integers below ``len(classes)``.
        classes: class names.
        background_agreement: in [0, 1]; how often the background has the colour of the scene's class. Otherwise it has
            one of the other classes' colours, uniformly; so ``1 / len(classes)`` makes colour and class independent.
        seed: of the places, sizes, colours and textures.
        size: height and width of a scene in pixels.
        scale: smallest and largest side of the garment as a fraction of ``size``.
        palette: ``"standard"``, or ``"unseen"`` for backgrounds that no training scene has.

    Examples:
        >>> garments = torch.full((2, 28, 28), 200, dtype=torch.uint8)
        >>> data = xl.demo.make_scenes(garments, torch.tensor([0, 1]), ("a", "b"), background_agreement=0.5, seed=0)
        >>> data.images.shape, data.masks.shape
        (torch.Size([2, 3, 40, 40]), torch.Size([2, 40, 40]))
    """
    if not 0.0 <= background_agreement <= 1.0:
        raise InputError(f"background_agreement: expected a number in [0, 1], got {background_agreement}")
    if palette not in PALETTES:
        raise InputError(f"palette: expected one of {sorted(PALETTES)}, got {palette!r}")
    rng = torch.Generator().manual_seed(seed)
    count = len(classes)
    agrees = torch.rand(len(labels), generator=rng) < background_agreement
    other = (labels + torch.randint(1, max(count, 2), labels.shape, generator=rng)) % count
    offset, saturation = PALETTES[palette]
    table = torch.tensor([colorsys.hsv_to_rgb((i / count + offset) % 1.0, saturation, 0.75) for i in range(count)])
    colour = table[torch.where(agrees, labels, other)]  # (N,3)
    colour = (colour + 0.06 * torch.randn(colour.shape, generator=rng)).clamp(0, 1)
    noise = [torch.randn(len(labels), 1, side, side, generator=rng) for side in (5, size // 2)]
    coarse, fine = (F.interpolate(x, (size, size), mode="bilinear", align_corners=False) for x in noise)
    background = colour[:, :, None, None] * (1 + 0.18 * coarse + 0.12 * fine).clamp(0.3, 1.7)  # (N,3,S,S)
    ink, mask = _place(garments.float() / 255.0, size, scale, rng)  # (N,1,S,S) each
    tint = 0.55 + 0.45 * torch.rand(len(labels), 3, 1, 1, generator=rng)
    alpha = (mask / _OBJECT_LEVEL).clamp(0, 1)
    scene = background * (1 - alpha) + alpha * (0.15 + 0.85 * ink) * tint
    scene = scene + 0.02 * torch.randn(scene.shape, generator=rng)
    pixels = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return ImageSet(pixels, labels, classes, (mask > _OBJECT_LEVEL).squeeze(1))


def _place(garments: Tensor, size: int, scale: tuple[float, float], rng: Generator) -> tuple[Tensor, Tensor]:
    count = len(garments)
    side = scale[0] + (scale[1] - scale[0]) * torch.rand(count, generator=rng)
    shift = (2 * torch.rand(count, 2, generator=rng) - 1) * (1 - side)[:, None]  # shift of the centre, in [-1, 1] units
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / side
    theta[:, :, 2] = -shift / side[:, None]
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    ink = F.grid_sample(garments[:, None], grid, align_corners=False)
    # the object is what is bright, with the dark holes inside it filled by one closing
    closed = -F.max_pool2d(-F.max_pool2d(ink, 3, 1, 1), 3, 1, 1)
    return ink, torch.maximum(ink, closed)
