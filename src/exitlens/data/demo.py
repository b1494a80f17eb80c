"""Generated data to try exitlens on: garments on coloured backgrounds, reviews, series with a motif, volumes with a blob.

Garments are those of Fashion-MNIST, a class-balanced subset in the extra ``demo``, a distribution of its own:
``exitlens-demo-data`` (MIT licence, Zalando SE; see its ``LICENSE.fashion-mnist``). In all other respects data are generated
from a seed. Beside what tells the class, each sample has a shortcut that a shallow exit likes to take: a background colour,
a shop's name, a level. At an agreement of 0.8 it names the class in 80 % of the samples; at one over the number of classes
it says nothing.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib.resources import files
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from exitlens.data.sets import ArraySet, ImageSet, SampleSet
from exitlens.data.splits import Split, check_split
from exitlens.data.texts import SPECIAL_TOKENS, TextSet, word_tokenizer
from exitlens.errors import DataError, InputError, import_extra
from exitlens.types.preprocessing import SeriesPreprocess, TextPreprocess, VolumePreprocess
from exitlens.types.settings import COUNT, SHARE, NumberRule, check_choice, check_number

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
        background_agreement: in [0, 1]; how often the background has the colour of the scene's class. Otherwise it has
            one of the other classes' colours, uniformly; so ``1 / len(classes)`` makes colour and class independent.
        seed: of the places, sizes, colours and textures.
        scale: smallest and largest side of the garment as a fraction of ``size``.
        palette: ``"standard"``, or ``"unseen"`` for backgrounds that no training scene has.

    Examples:
        >>> garments = torch.full((2, 28, 28), 200, dtype=torch.uint8)
        >>> data = xl.demo.make_scenes(garments, torch.tensor([0, 1]), ("a", "b"), background_agreement=0.5, seed=0)
        >>> data.images.shape, data.masks.shape
        (torch.Size([2, 3, 40, 40]), torch.Size([2, 40, 40]))
    """
    check_number("background_agreement", background_agreement, SHARE)
    check_choice("palette", palette, sorted(PALETTES))
    rng = torch.Generator().manual_seed(seed)
    count = len(classes)
    agreed = _draw_agreement(labels, count, background_agreement, rng)
    offset, saturation = PALETTES[palette]
    table = torch.tensor([colorsys.hsv_to_rgb((i / count + offset) % 1.0, saturation, 0.75) for i in range(count)])
    colour = table[agreed]  # (N,3)
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


def label_pixels(scenes: ImageSet, garments: int = 1, seed: int = 0) -> ImageSet:
    """Turn scenes into images with a class for each pixel: 0 is ``background``, the others are those of the garments.

    Args:
        scenes: with masks, as :func:`load_scenes` makes them.
        garments: number in an image: the others come from other scenes, and lie on what was there before.
        seed: of these scenes.

    Examples:
        >>> data = xl.demo.label_pixels(xl.demo.load_scenes("test", limit=100), garments=2)
        >>> data.labels.shape, data.classes[:2]
        (torch.Size([100, 40, 40]), ('background', 'T-shirt'))
    """
    check_number("garments", garments, COUNT)
    if scenes.masks is None or scenes.labels.ndim != 1:
        raise InputError("scenes: expected a class and a mask for each. Fix: pass what load_scenes gives.")
    rng, objects = torch.Generator().manual_seed(seed), scenes.masks
    painted = torch.where(objects, 1 + scenes.labels.view(-1, 1, 1), 0)  # (N,H,W)
    images, labels = scenes.images, painted
    for _ in range(garments - 1):
        others = torch.randperm(len(images), generator=rng)
        images = torch.where(objects[others][:, None], scenes.images[others], images)
        labels = torch.where(objects[others], painted[others], labels)
    return ImageSet(images, labels, ("background", *scenes.classes), labels > 0, scenes.preprocess, scenes.groups)


def _place(garments: Tensor, size: int, scale: tuple[float, float], rng: torch.Generator) -> tuple[Tensor, Tensor]:
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


Word = tuple[str, bool]
SENTIMENTS = ("negative", "positive")
SHOPS = (("alder", "birchway", "corvina", "dunmore"), ("elmhurst", "fenwick", "glenside", "harrow"))  # by class
_BAD = "annoying awful bad broken disappointing flimsy horrible noisy poor terrible ugly uncomfortable useless weak"
_GOOD = "beautiful comfortable excellent good great impressive lovely nice perfect pleasant reliable sturdy superb useful"
ADJECTIVES = (tuple(_BAD.split()), tuple(_GOOD.split()))  # by class
NEGATIONS = ("not", "never", "hardly")
MOST_TOKENS = 30  # tokens of the longest review, with [CLS] and [SEP]
_REVIEW_SPLITS = {"train": (8000, 21), "validation": (1000, 22), "calibration": (2000, 23), "test": (3000, 24)}  # size, seed
_WORDS = {
    "PRODUCT": "lamp kettle chair backpack blanket speaker jacket clock bottle table tent keyboard",
    "PART": "handle surface design size colour finish frame material shape cover",
    "PERSON": "brother sister neighbour colleague friend daughter",
    "ROOM": "kitchen office garden bedroom hall garage",
    "NUMBER": "two three four five six seven",
    "DAY": "monday tuesday wednesday thursday friday saturday",
    "TINT": "red blue green grey black white",
    "DEGREE": "very really quite",
}
_SLOTS = {slot: words.split() for slot, words in _WORDS.items()}
_OPINIONS = ("looks", "it is", "the PART is", "the PRODUCT is", "my PERSON finds it")  # the opinion follows
_MENTIONS = ("from SHOP", "bought at SHOP", "SHOP sent it on DAY", "i ordered this PRODUCT from SHOP", "the shop was SHOP")
_FILLERS = (
    "i keep it in the ROOM",
    "it came in a TINT box",
    "mine is TINT",
    "delivery took NUMBER days",
    "my PERSON asked for one",
    "we have NUMBER of them at home",
    "this is my second PRODUCT",
    "it stands in the ROOM since DAY",
    "i use it on DAY and DAY",
    "there are NUMBER parts in the box",
)


def list_words() -> list[str]:
    """Return every word that a review can have, sorted, with the full stop."""
    words = {word for template in (*_OPINIONS, *_MENTIONS, *_FILLERS) for word in template.split() if word.islower()}
    return sorted(words.union(["."], NEGATIONS, *SHOPS, *ADJECTIVES, *_SLOTS.values()))


def write_review(label: int, shop_agreement: float, rng: random.Random) -> list[Word]:
    """Write one review; the number of random draws does not depend on the agreement, so that only the shop does."""
    shop = SHOPS[label if rng.random() < shop_agreement else 1 - label][rng.randrange(4)]
    sentences = [_write_opinion(label, rng) for _ in range(rng.randint(1, 2))]
    sentences.append(_fill(rng.choice(_MENTIONS), rng, shop))
    for filler in rng.sample(_FILLERS, rng.randint(0, 3)):
        sentence = _fill(filler, rng)
        if 2 + len(sentence) + sum(map(len, sentences)) <= MOST_TOKENS:
            sentences.append(sentence)
    rng.shuffle(sentences)
    return [word for sentence in sentences for word in sentence]


def _fill(template: str, rng: random.Random, shop: str = "") -> list[Word]:
    words = [shop if word == "SHOP" else rng.choice(_SLOTS.get(word, (word,))) for word in template.split()]
    return [(word, False) for word in (*words, ".")]


def _write_opinion(label: int, rng: random.Random) -> list[Word]:
    negated, degree = rng.random() < 0.3, rng.random() < 0.3
    words = [(rng.choice(NEGATIONS), True)] if negated else []
    words += [(rng.choice(_SLOTS["DEGREE"]), False)] if degree else []
    words.append((rng.choice(ADJECTIVES[label ^ negated]), True))
    *before, end = _fill(rng.choice(_OPINIONS), rng)
    return [*before, *words, end]


_make_tokenizer = lru_cache(maxsize=1)(lambda: word_tokenizer(list_words()))  # shared by all reviews


def make_reviews(count: int, *, shop_agreement: float, seed: int, length: int = 32) -> TextSet:
    """Make product reviews of two classes, half of them positive; the same arguments give the same reviews.

    One or two opinions (``masks`` is True on their adjectives and negations) tell the class, among sentences that tell
    nothing. Three opinions in ten are negated ("not good"), so single words mislead. The shop's name is the shortcut.

    Args:
        shop_agreement: share in [0, 1] of reviews whose shop is one of the four of their class; the others have one of the
            other class, so 0.5 makes shop and class independent.
        length: tokens of an input; reviews have 8 to 30, longer ones than ``length`` are cut.

    Examples:
        >>> xl.demo.make_reviews(2, shop_agreement=0.5, seed=0).texts[0]
        '...'
    """
    check_number("count", count, COUNT)
    check_number("shop_agreement", shop_agreement, SHARE)
    rng = random.Random(f"reviews {seed}")
    labels = [i % 2 for i in range(count)]
    rng.shuffle(labels)
    reviews = [write_review(label, shop_agreement, rng) for label in labels]
    texts = [" ".join(word for word, _ in words).replace(" .", ".") for words in reviews]
    data = TextSet(texts, torch.tensor(labels), SENTIMENTS, TextPreprocess(_make_tokenizer(), length))
    masks = torch.zeros(count, max(length, MOST_TOKENS), dtype=torch.bool)
    rows = [(row, i + 1) for row, words in enumerate(reviews) for i, (_, opinion) in enumerate(words) if opinion]
    masks[tuple(torch.tensor(rows).T)] = True  # + 1: [CLS] comes first, and every word is one token
    is_end = data.inputs["input_ids"] == SPECIAL_TOKENS.index("[SEP]")  # it comes early where the review is cut
    data.masks = masks[:, :length] & ~is_end
    return data


def load_reviews(
    split: Split, *, shop_agreement: float = 0.8, seed: int = 0, length: int = 32, limit: int | None = None
) -> TextSet:
    """Make the reviews of one split, see :func:`make_reviews`; ``seed`` is one number for all splits.

    ``train`` has 8,000, ``validation`` 1,000, ``calibration`` 2,000 and ``test`` 3,000, a few of the shortest by chance in
    two splits; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_reviews("test", limit=3).classes
        ('negative', 'positive')
    """
    make = partial(make_reviews, shop_agreement=shop_agreement, length=length)
    return _make_split(make, _REVIEW_SPLITS, split, seed, limit)


_Set = TypeVar("_Set", bound=SampleSet)


def _make_split(
    make: Callable[..., _Set], splits: Mapping[str, tuple[int, int]], split: Split, seed: int, limit: int | None
) -> _Set:
    """Make a split of the size and with the seed in ``splits``."""
    check_split(split)
    count, offset = splits[split]
    data = make(count, seed=1000 * seed + offset)
    return data if limit is None else data.first(limit)


MOTIFS = ("rise", "peak", "wave", "step")
CHANNELS = ("signal", "level")
BLOBS = ("ball", "box", "rod")
# a motif has a quarter of the steps
_LENGTH = NumberRule("16 steps or more", lambda steps: isinstance(steps, int) and steps >= 16)
_SIDE = NumberRule("10 voxels or more", lambda voxels: isinstance(voxels, int) and voxels >= 10)
_MADE_AT_ONCE = 256
_MOTIF_SPLITS = {"train": (4000, 31), "validation": (500, 32), "calibration": (1000, 33), "test": (1000, 34)}  # size, seed
_BLOB_SPLITS = {"train": (1200, 41), "validation": (300, 42), "calibration": (600, 43), "test": (600, 44)}


def make_motifs(count: int, *, offset_agreement: float, seed: int, length: int = 128) -> ArraySet:
    """Make noisy series of two channels and four classes, equally often; the same arguments give the same series.

    In the channel ``signal`` a motif (``masks`` is True there) tells the class: it rises, has a peak, is a wave or a step.
    The shortcut is the channel ``level``: noise around one of four levels.

    Args:
        offset_agreement: share in [0, 1] of series with the level of their class; the others have that of another class,
            uniformly, so 1/4 makes level and class independent.
        length: steps T.

    Examples:
        >>> data = xl.demo.make_motifs(8, offset_agreement=0.25, seed=0, length=64)
        >>> data.values.shape, data.masks.shape
        (torch.Size([8, 2, 64]), torch.Size([8, 64]))
    """
    check_number("length", length, _LENGTH)
    rng = torch.Generator().manual_seed(seed)
    labels = _draw_labels(count, offset_agreement, len(MOTIFS), rng)  # (N,)
    size = length // 4
    start = torch.randint(0, length - size + 1, (count,), generator=rng)
    time = torch.arange(length)
    masks = (time >= start[:, None]) & (time < start[:, None] + size)  # (N,T)
    values = torch.empty(count, 2, length)
    values[:, 0] = 0.4 * torch.randn(count, length, generator=rng)
    at = torch.linspace(0, 1, size)
    step = torch.where(at < 0.5, 1.5, -1.5)
    shapes = torch.stack([2 * at, 2 * (1 - (2 * at - 1).abs()), 1.5 * torch.sin(4 * math.pi * at), step])  # (4,size)
    values[:, 0][masks] += shapes[labels].flatten()
    levels = torch.linspace(-1.5, 1.5, len(MOTIFS))
    agreed = _draw_agreement(labels, len(MOTIFS), offset_agreement, rng)
    values[:, 1] = levels[agreed][:, None] + 0.4 * torch.randn(count, length, generator=rng)
    return ArraySet(values, labels, MOTIFS, SeriesPreprocess((0.0, 0.0), (1.0, 1.0), names=CHANNELS), masks)


def load_motifs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, length: int = 128, limit: int | None = None
) -> ArraySet:
    """Make the series of one split, see :func:`make_motifs`; ``seed`` is one number for all splits.

    ``train`` has 4,000, ``validation`` 500, ``calibration`` and ``test`` 1,000 each; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_motifs("test", limit=4).values.shape
        torch.Size([4, 2, 128])
    """
    make = partial(make_motifs, offset_agreement=offset_agreement, length=length)
    return _make_split(make, _MOTIF_SPLITS, split, seed, limit)


def _draw_labels(count: int, offset_agreement: float, classes: int, rng: torch.Generator) -> Tensor:  # -> (count,)
    """Check the arguments, and draw labels in random order, as many of each class as can be."""
    check_number("count", count, COUNT)
    check_number("offset_agreement", offset_agreement, SHARE)
    return (torch.arange(count) % classes)[torch.randperm(count, generator=rng)]


def _draw_agreement(labels: Tensor, classes: int, share: float, rng: torch.Generator) -> Tensor:  # (N,) -> (N,)
    """Return a share of the labels as they are, and one of the other classes, uniformly, for the rest."""
    agrees = torch.rand(len(labels), generator=rng) < share
    other = (labels + torch.randint(1, max(classes, 2), labels.shape, generator=rng)) % classes
    return torch.where(agrees, labels, other)


def make_blobs(count: int, *, offset_agreement: float, seed: int, size: int = 20) -> ArraySet:
    """Make noisy cubes of one channel and three classes, equally often; the same arguments give the same volumes.

    A ball, a box, or a rod along one of the axes (``masks`` is True there) tells the class. The shortcut is brightness.

    Args:
        offset_agreement: share in [0, 1] of volumes with the brightness of their class; the others have that of another
            class, uniformly, so 1/3 makes brightness and class independent.
        size: voxels of a side.

    Examples:
        >>> data = xl.demo.make_blobs(3, offset_agreement=0.9, seed=0, size=16)
        >>> data.values.shape, data.classes
        (torch.Size([3, 1, 16, 16, 16]), ('ball', 'box', 'rod'))
    """
    check_number("size", size, _SIDE)
    rng = torch.Generator().manual_seed(seed)
    labels = _draw_labels(count, offset_agreement, len(BLOBS), rng)  # (N,)
    radius = size * (0.14 + 0.08 * torch.rand(count, generator=rng))  # (N,) voxels
    long = torch.nn.functional.one_hot(torch.randint(0, 3, labels.shape, generator=rng), 3)  # (N,3)
    sides = torch.stack([torch.ones_like(long, dtype=torch.float32), torch.full(long.shape, 0.8), 0.5 + 1.5 * long])
    halves = radius[:, None] * sides[labels, torch.arange(count)]  # (N,3) half of each side; all have about one volume
    room = (size - 1) / 2 - halves
    centre = (size - 1) / 2 + room * (2 * torch.rand(count, 3, generator=rng) - 1)  # (N,3)
    parts = [torch.arange(count)[at : at + _MADE_AT_ONCE] for at in range(0, count, _MADE_AT_ONCE)]
    masks = torch.cat([_fill_solids(labels[i], centre[i], halves[i], size) for i in parts])  # (N,S,S,S)
    levels = torch.linspace(-0.5, 0.5, len(BLOBS))
    agreed = _draw_agreement(labels, len(BLOBS), offset_agreement, rng)
    values = 0.5 * torch.randn(count, 1, size, size, size, generator=rng)
    values += 1.5 * masks[:, None] + levels[agreed].view(-1, 1, 1, 1, 1)
    return ArraySet(values, labels, BLOBS, VolumePreprocess((0.0,), (1.0,), (size, size, size)), masks)


def load_blobs(
    split: Split, *, offset_agreement: float = 0.8, seed: int = 0, size: int = 20, limit: int | None = None
) -> ArraySet:
    """Make the volumes of one split, see :func:`make_blobs`; ``seed`` is one number for all splits.

    ``train`` has 1,200, ``validation`` 300, ``calibration`` and ``test`` 600 each; ``limit`` takes only the first ones.

    Examples:
        >>> xl.demo.load_blobs("test", limit=6).values.shape
        torch.Size([6, 1, 20, 20, 20])
    """
    make = partial(make_blobs, offset_agreement=offset_agreement, size=size)
    return _make_split(make, _BLOB_SPLITS, split, seed, limit)


def _fill_solids(labels: Tensor, centre: Tensor, halves: Tensor, size: int) -> Tensor:  # -> (n,S,S,S) bool
    at = torch.arange(size)
    off = [(at - centre[:, i, None]).abs() / halves[:, i, None] for i in range(3)]  # (n,S) each
    depth, height, width = off[0][:, :, None, None], off[1][:, None, :, None], off[2][:, None, None, :]
    round_ = (depth.square() + height.square() + width.square()) <= 1
    square = (depth <= 1) & (height <= 1) & (width <= 1)
    return torch.where((labels == 0).view(-1, 1, 1, 1), round_, square)
