"""Cues: whether ``xl.find_cues`` finds cues that were planted in small data, and finds none where none was planted.

Cells are KIND-SEED, with a cue that names the class in most of the training data, and none-KIND-SEED: the same data, in which it
says nothing. Settings were chosen on seeds 0 to 6 and from 100 on; the networks of seed N here are trained with seed N + 10.
Ten seconds for each cell, on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from statistics import mean

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, table
from benchmarks.results import Runs, Tree, list_seeds
from exitlens.data.demo import SHOPS
from exitlens.data.sets import SampleSet
from exitlens.data.splits import Split

NONE = "none-"  # before the names of kinds, where nothing is planted
KINDS = ("colour", "patch", "texture", "level", "words")
SEEDS, FIRST_SEED = 14, 10  # of each kind that are reported
AGREEMENT = {"colour": 0.8, "patch": 0.85, "texture": 0.85, "level": 0.9, "words": 0.8}
CLASSES = {"colour": 10, "patch": 10, "texture": 10, "level": 4, "words": 2}
EPOCHS = {"colour": 5, "patch": 5, "texture": 5, "level": 6, "words": 8}
TRAINED, JUDGED = 2000, 600
SIDE, CORNER = 32, 8  # pixels: the side of scenes, and of the patch
FIRST, ENOUGH, MOST_FALSE = 3, 0.9, 0.1


class PlainNet(nn.Sequential):
    """Convolutions that halve the size: the first sees five places, the last most of the input."""

    def __init__(self, axes: int, channels: int, classes: int, widths: Sequence[int] = (16, 24, 32, 48)) -> None:
        convolve, norm, pool = (
            (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d)
            if axes == 1
            else (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d)
        )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((channels, *widths)):
            layers.append(nn.Sequential(convolve(inputs, outputs, 5, 2, 2, bias=False), norm(outputs), nn.ReLU()))
        super().__init__(*layers, pool(1), nn.Flatten(), nn.Linear(widths[-1], classes))


class Neighbours(nn.Module):
    """Adds to every word what it and the words beside it say."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, side, padding=side // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B,N,D), (B,N,1) -> (B,N,D)
        return x + torch.relu(self.convolution((x * mask).mT).mT)


class WordNet(nn.Module):
    """Embeddings of words, which the first exit sees one by one, and the last five together."""

    def __init__(self, words: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.words, self.classifier = nn.Embedding(words, width), nn.Linear(width, classes)
        self.layer1, self.layer2, self.layer3 = (Neighbours(width, side) for side in (1, 3, 3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # (B,N) each -> (B,classes)
        mask = attention_mask[..., None]
        x = self.words(input_ids)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x, mask)
        return self.classifier((x * mask).sum(1) / mask.sum(1))


def list_cells(quick: bool = False) -> dict[str, Job]:
    names = [*KINDS, *(f"{NONE}{kind}" for kind in KINDS)]
    return list_by_seed(partial(measure_cell, quick=quick), dict.fromkeys(names, SEEDS))


def measure_cell(name: str, seed: int, quick: bool = False) -> Tree:
    kind, seed = name.removeprefix(NONE), FIRST_SEED + seed
    net, data, accuracy = train_network(kind, name == kind, seed, quick)
    result = xl.find_cues(net, data, samples=64 if quick else JUDGED, seed=seed)
    hits = [is_planted(kind, cue) for cue in result.cues]
    clearest = {"clearest": result.cues[0].name} if result.cues else {}
    place = hits.index(True) + 1 if any(hits) else 0
    return {"listed": len(result), **clearest, "place": place, "accuracy": accuracy}


def train_network(kind: str, planted: bool, seed: int, quick: bool = False) -> tuple[xl.ExitNet, SampleSet, list[float]]:
    """Return a network, the validation data and the exits' accuracy on them; what was planted is planted in both."""
    agreement = AGREEMENT[kind] if planted else 1 / CLASSES[kind]
    train, validation = (load_data(kind, split, agreement, seed) for split in ("train", "validation"))
    train, validation = train.first(64 if quick else TRAINED), validation.first(JUDGED)
    torch.manual_seed(seed)
    inputs = train.first(2).inputs
    backbone, at = build_backbone(kind, train)
    net = xl.attach(backbone, at, len(train.classes), inputs, head="evidence")
    net.describe(classes=tuple(train.classes), preprocess=train.preprocess)
    options = {"epochs": 1 if quick else EPOCHS[kind], "batch_size": 32, "amp": False, "progress": False, "keep": "last"}
    xl.fit(net, train, validation.first(64), loss=xl.EGTLoss(weight=0.0), seed=seed, **options)  # type: ignore[arg-type]
    trace = xl.collect(net, validation, batch_size=250)
    return net, validation, trace.correct.float().mean(0).tolist()


def build_backbone(kind: str, train: SampleSet) -> tuple[nn.Module, tuple[str, ...]]:
    if kind == "words":
        return WordNet(train.preprocess.vocabulary_size, CLASSES[kind]), ("layer1", "layer2")
    if kind == "level":
        return PlainNet(1, 2, CLASSES[kind]), ("0", "1", "2")
    return PlainNet(2, 3, CLASSES[kind]), ("1", "2")


def load_data(kind: str, split: Split, agreement: float, seed: int) -> SampleSet:
    if kind == "words":
        return xl.demo.load_reviews(split, shop_agreement=agreement, seed=seed)
    if kind == "level":
        return xl.demo.load_motifs(split, offset_agreement=agreement, seed=seed)
    if kind == "colour":
        return xl.demo.load_scenes(split, background_agreement=agreement, seed=seed, size=SIDE)
    data = xl.demo.load_scenes(split, background_agreement=0.1, seed=seed, size=SIDE)
    return plant_stripes(data, kind == "patch", agreement, 7 * seed + len(split))


def plant_stripes(data: xl.data.ImageSet, in_corner: bool, agreement: float, seed: int) -> xl.data.ImageSet:
    """Draw stripes whose direction and width name a class: in a corner of the images, or faintly on their background."""
    rng, count, side = torch.Generator().manual_seed(seed), len(data.classes), data.images.shape[-1]
    agrees = torch.rand(len(data), generator=rng) < agreement
    other = (data.labels + torch.randint(1, count, data.labels.shape, generator=rng)) % count
    told = torch.where(agrees, data.labels, other)
    angle, frequency = math.pi * (told % 5) / 5, torch.where(told < 5, 0.18, 0.33)  # cycles a pixel
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
    phase = 2 * math.pi * torch.rand(len(data), 1, 1, generator=rng)
    waves = (2 * math.pi * frequency[:, None, None] * along + phase).sin()[:, None]  # (N,1,S,S)
    images = data.images.float()
    if in_corner:
        images[:, :, :CORNER, -CORNER:] = 127 + 100 * waves[:, :, :CORNER, -CORNER:].expand(-1, 3, -1, -1)
    else:
        images += 40 * waves * ~data.masks[:, None]
    return xl.data.ImageSet(images.clamp(0, 255).to(torch.uint8), data.labels, data.classes, data.masks)


def is_planted(kind: str, cue: xl.types.Cue) -> bool:
    """Return whether a cue is the planted one, by what it is called."""
    if kind == "words":
        shops = {shop for names in SHOPS for shop in names}
        return cue.kind == "words" and len(shops & set(cue.ignore)) >= len(cue.ignore) / 2  # type: ignore[arg-type]
    if kind == "patch":
        corner = torch.zeros_like(cue.ignore) if isinstance(cue.ignore, Tensor) else torch.zeros(1, 1, dtype=torch.bool)
        corner[:CORNER, -CORNER:] = True
        return cue.kind == "place" and bool((corner & cue.ignore).any())
    if kind == "level":
        return cue.name in ("level", "level of level") and cue.kind in ("level", "channel")
    return cue.kind == "background" or cue.kind == ("level" if kind == "colour" else "texture")


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Promise shares of the trainings of all kinds together."""
    planted, none = ([run for kind in KINDS for run in list_seeds(runs, f"{prefix}{kind}")] for prefix in ("", NONE))
    if planted and none:
        hits = mean(0 < run["place"] <= FIRST for run in planted)
        yield Promise.of_share("cues|hits", "planted cue among the first three", hits, len(planted), ">=", ENOUGH)
        false = mean(run["listed"] > 0 for run in none)
        yield Promise.of_share("cues|false", "something listed without a cue", false, len(none), "<=", MOST_FALSE)


def write_tables(runs: Runs) -> list[str]:
    rows = []
    for kind in KINDS:
        for name in (kind, f"{NONE}{kind}"):
            if measured := list_seeds(runs, name):
                places = " ".join(str(run["place"] or "-") for run in measured)
                listed = " ".join(str(run["listed"]) for run in measured)
                rows.append([name, join_means([run["accuracy"] for run in measured], 0, 100), places, listed])
    head = ["data", "accuracy of the exits, %", "place of the planted cue, by seed", "cues listed"]
    return [*table(head, rows), "", *promise_table(list_promises(runs))]


STUDY = Study("cues", list_cells, list_promises, {"cues": write_tables})
