"""Makes a folder of pictures: each drawing several times, at random places, sizes and turns, on backgrounds of its own.

Usage: python -m benchmarks.pictures.make OUT [--size 128] [--seed 0] [--flat] [--agreement 0.8] [--drawings DIR] [--limit N]

OUT/pictures/SPLIT/CLASS/DRAWING__03.jpg and OUT/masks/SPLIT/CLASS/DRAWING__03.png (white where the drawing is). No drawing is in two
splits. With --flat there is no level SPLIT, so that `--group-by '(.+)__'` has something to do. The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from benchmarks.pictures.backgrounds import draw_background
from benchmarks.pictures.drawings import CLASSES, OPENCLIPART, Drawing, find_drawings, select_drawings

SHARES = {"train": 0.5, "validation": 0.08, "calibration": 0.21, "test": 0.21}  # of the drawings
PICTURES = {"train": 8, "validation": 6, "calibration": 6, "test": 8}  # of each drawing
SCALE = (0.45, 0.9)  # of the drawing's longer side
TURN = 20.0  # degrees to either side
LEAST_CONTRAST = 0.15  # mean distance of colours between the drawing and what it covers; below, another background is tried


@dataclass(frozen=True)
class Recipe:
    """What decides the pixels, besides the drawings.

    Attributes:
        size: height and width in pixels.
        seed: of places, sizes, turns, backgrounds and of the split.
        agreement: how often the background has the hue of the picture's class, else that of another; ``None``: any colours.
    """

    size: int = 128
    seed: int = 0
    agreement: float | None = None


def split_drawings(drawings: Sequence[Drawing], seed: int = 0) -> dict[str, list[Drawing]]:
    """Shares of every class's drawings; a drawing has one place in the order of its class, whatever others there are."""
    parts: dict[str, list[Drawing]] = {split: [] for split in SHARES}
    for label in sorted({one.label for one in drawings}):
        ranked = sorted((one for one in drawings if one.label == label), key=lambda one: _digest(seed, one.name))
        ends = np.rint(np.cumsum([0, *SHARES.values()]) * len(ranked)).astype(int)
        for split, start, end in zip(SHARES, ends, ends[1:], strict=False):
            parts[split] += ranked[start:end]
    return parts


def _digest(*key: object) -> int:
    return int.from_bytes(hashlib.sha256("|".join(map(str, key)).encode()).digest()[:8])


def make_picture(drawing: Drawing, number: int, recipe: Recipe, labels: Sequence[str]) -> tuple[Image.Image, Image.Image]:
    """Picture and mask; they depend on the drawing, the number and the recipe only."""
    rng = np.random.default_rng(_digest(recipe.seed, drawing.name, number))
    layer = _place(drawing.pixels, recipe.size, rng)  # (S,S,4)
    ink, alpha = layer[..., :3], layer[..., 3:]
    hue = None if recipe.agreement is None else _draw_hue(drawing.label, labels, recipe.agreement, rng)
    for _ in range(10):
        background = draw_background(recipe.size, rng, hue)
        contrast = np.linalg.norm((ink - background) * alpha, axis=-1).sum() / max(alpha.sum(), 1)
        if contrast >= LEAST_CONTRAST:
            break
    picture = alpha * ink + (1 - alpha) * background
    picture = picture + rng.normal(0, rng.uniform(0, 0.03), picture.shape)
    pixels = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return Image.fromarray(pixels), Image.fromarray(np.where(alpha[..., 0] > 0.5, 255, 0).astype(np.uint8))


def _draw_hue(label: str, labels: Sequence[str], agreement: float, rng: Generator) -> float:
    own = labels.index(label)
    other = (own + rng.integers(1, len(labels))) % len(labels)
    return float((own if rng.uniform() < agreement else other) / len(labels))


def _place(pixels: Image.Image, size: int, rng: Generator) -> np.ndarray:  # -> (S,S,4) in [0, 1]
    """The drawing, mirrored or not, turned and scaled, wholly inside."""
    if rng.uniform() < 0.5:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = pixels.convert("RGBa").rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(*SCALE) * size / max(turned.size)
    sides = (max(2, round(turned.width * scale)), max(2, round(turned.height * scale)))
    turned = turned.resize(sides, Image.Resampling.LANCZOS).convert("RGBA")
    layer = Image.new("RGBA", (size, size))
    layer.paste(turned, tuple(int(rng.integers(0, size - side + 1)) for side in sides))
    return np.asarray(layer, dtype=float) / 255


def list_pictures(parts: dict[str, list[Drawing]], flat: bool = False) -> Iterator[tuple[Path, Drawing, int]]:
    """Every picture's relative path without suffix, its drawing and number."""
    for split, drawings in parts.items():
        for drawing in drawings:
            for number in range(PICTURES[split]):
                folder = Path(drawing.label) if flat else Path(split) / drawing.label
                yield folder / f"{drawing.name}__{number:02d}", drawing, number


def make_folder(out: Path, drawings: Sequence[Drawing], recipe: Recipe, flat: bool = False) -> int:
    """Writes what is not there yet; how many pictures there are."""
    labels = sorted({one.label for one in drawings})
    total = 0
    for stem, drawing, number in list_pictures(split_drawings(drawings, recipe.seed), flat):
        total += 1
        target, shadow = out / "pictures" / f"{stem}.jpg", out / "masks" / f"{stem}.png"
        if target.exists():
            continue
        picture, mask = make_picture(drawing, number, recipe, labels)
        for path, image, how in ((shadow, mask, {}), (target, picture, {"quality": 90})):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            image.save(temporary, format="JPEG" if how else "PNG", **how)
            temporary.replace(path)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=Recipe.size)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--flat", action="store_true", help="class folders without a level for the splits")
    parser.add_argument(
        "--agreement", type=float, help="how often the background's hue names the class; by default any colours"
    )
    parser.add_argument("--drawings", type=Path, default=OPENCLIPART, metavar="DIR")
    parser.add_argument("--limit", type=int, help="drawings of a class, for tries")
    given = parser.parse_args(arguments)
    if not given.drawings.is_dir():
        raise SystemExit(f"no folder {given.drawings}: apt-get install openclipart-png, or name another with --drawings")
    drawings = select_drawings(find_drawings(given.drawings))
    if given.limit:
        drawings = [one for label in CLASSES for one in [d for d in drawings if d.label == label][: given.limit]]
    total = make_folder(given.out, drawings, Recipe(given.size, given.seed, given.agreement), given.flat)
    print(f"{given.out}: {total:,} pictures of {len(drawings)} drawings in {len({d.label for d in drawings})} classes")


if __name__ == "__main__":
    main()
