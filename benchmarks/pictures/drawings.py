"""Drawings with transparency, from a folder of categories (Debian's openclipart-png) to classes without near-duplicates.

The collection holds many drawings twice or more: in outline and in colour, mirrored signs, one drawing in two categories. A copy of
a training drawing among the test drawings would be counted as generalisation, so of those that look alike one stays, and none where
they stand in different classes.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

OPENCLIPART = Path("/usr/share/openclipart/png")  # apt-get install openclipart-png
CLASSES: dict[str, tuple[str, ...]] = {
    "beverages": ("food/beverages",),
    "birds": ("animals/birds",),
    "bugs": ("animals/bugs",),
    "buildings": ("buildings",),
    "clothing": ("people/clothing",),
    "desserts": ("food/desserts",),
    "fruit": ("food/fruit", "food/vegetables"),
    "hardware": ("computer/hardware",),
    "mammals": ("animals/mammals",),
    "meals": ("food/breads_and_carbs", "food/meats_and_eggs"),
    "music": ("recreation/music",),
    "office": ("office",),
    "plants": ("plants",),
    "roadsigns": ("transportation/roadsigns",),
    "tools": ("tools",),
    "vehicles": ("transportation/vehicles",),
}
SIDE = 256  # pixels of a drawing's longer side
MOST_PIXELS = 20_000_000
LEAST_INK, MOST_INK = 0.08, 0.97  # of the drawing's own box; above: a picture with a background of its own
ALIKE = {True: 12, False: 6}  # bits of 64 of the perceptual hash; in one class, in two (where 12 bits are mostly chance)


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    Attributes:
        name: of letters, digits and hyphens: what comes before ``__`` in the names of its pictures.
        label: its class.
        pixels: RGBA, cropped to what is visible, the longer side ``SIDE``.
    """

    name: str
    label: str
    pixels: Image.Image


def read_drawing(path: Path, label: str) -> Drawing | None:
    """The drawing in a file, or ``None`` for what is huge, unreadable, nearly empty or has its own background."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
            if image.width * image.height > MOST_PIXELS:
                return None
            image = image.convert("RGBA")
    except (OSError, Image.DecompressionBombError):
        return None
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 32)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    image = image.crop(box)
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    ink = float(np.mean(np.asarray(image.getchannel("A")) > 127))
    return Drawing(name_drawing(path), label, image) if LEAST_INK <= ink <= MOST_INK else None


def name_drawing(path: Path) -> str:
    """The name of the file in letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")


def find_drawings(root: Path, classes: Mapping[str, Sequence[str]] = CLASSES) -> Iterator[Drawing]:
    """All usable drawings of the classes, by class and name; a class is what the folders say."""
    for label, folders in sorted(classes.items()):
        paths = sorted(path for folder in folders for path in (root / folder).rglob("*.png"))
        yield from (drawing for path in paths if (drawing := read_drawing(path, label)))


def select_drawings(drawings: Iterable[Drawing]) -> list[Drawing]:
    """One of all that look alike or are called alike within a class, and none of those in several classes."""
    found = list(drawings)
    bits = np.stack([hash_drawing(one) for one in found])  # (N,2,64)
    family = np.arange(len(found))  # the first drawing that each is like, at one or more removes
    for i, one in enumerate(found):
        most = np.array([ALIKE[other.label == one.label] for other in found[:i]], dtype=int)
        is_near = (bits[:i, 0] != bits[i][:, None]).sum(-1).min(0) <= most
        is_namesake = np.array([stem(other.name) == stem(one.name) for other in found[:i]], dtype=bool)
        alike = family[:i][is_near | is_namesake]
        if len(alike):
            family[np.isin(family, [i, *alike])] = alike.min()
    labels = defaultdict(set)
    for first, one in zip(family, found, strict=True):
        labels[first].add(one.label)
    return [one for i, one in enumerate(found) if family[i] == i and len(labels[i]) == 1]


def stem(name: str) -> str:
    """A name without the marks for an outline and for numbered versions."""
    return re.sub(r"(^|-)(bw|black|white|color|colour|outline|\d+|r)(?=-|$)", "", name).strip("-")


def hash_drawing(drawing: Drawing) -> np.ndarray:  # -> (2,64) bool: as drawn and mirrored
    """Perceptual hashes on white, with a margin that makes every drawing a square."""
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(drawing.pixels, ((SIDE - drawing.pixels.width) // 2, (SIDE - drawing.pixels.height) // 2))
    grey = square.convert("L")
    mirrored = grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.stack([imagehash.phash(one).hash.flatten() for one in (grey, mirrored)])
