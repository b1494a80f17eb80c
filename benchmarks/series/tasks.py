"""What is learned: the short series that come with the package aeon, and generated ones whose motif is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

import exitlens as xl
from exitlens.data.lines import read_ts
from exitlens.data.sets import measure_scaling

MOTIFS = "motifs"
SEEDS = 5
UPDATES, BATCH, DISTILL = (
    1280,
    16,
    1.0,
)  # of the archive's sets: updates of the weights, at least; chosen by trials.py
AGREEMENT = 0.9  # of motifs' training series: how often the level says the class, too
ARCHIVE = {  # every set of aeon 1.6 for classification with series of equal length up to 200 steps
    "basicmotions": "BasicMotions/BasicMotions",
    "gunpoint": "GunPoint/GunPoint",
    "italypower": "ItalyPowerDemand/ItalyPowerDemand",
    "vowels": "JapaneseVowels/JapaneseVowels_eq",
}


@dataclass(frozen=True)
class Task:
    """Series in three parts, and for how long to train.

    Attributes:
        train: fits the weights; validation: chooses thresholds, and nothing else; tests: the first is what maps are judged on.
        distill: weight of the distillation of logits from the final exit, with EGT.
    """

    train: xl.ArraySet
    validation: xl.ArraySet
    tests: dict[str, xl.ArraySet]
    epochs: int
    batch_size: int
    distill: float = 0.0


def load_task(name: str, seed: int, updates: int = UPDATES, distill: float = DISTILL) -> Task:
    """The data of one run, and how it is trained; ``updates`` and ``distill`` are of the archive's sets."""
    return _load_motifs(seed) if name == MOTIFS else _load_archive(name, seed, updates, distill)


def _load_motifs(seed: int) -> Task:
    """Trained where the level mostly agrees with the class; tested there, and where it says nothing."""
    agreeing = {"offset_agreement": AGREEMENT, "seed": seed}
    train, validation = (xl.load_motifs(part, **agreeing, limit=n) for part, n in (("train", 1000), ("validation", 500)))
    tests = {
        "agreeing": xl.load_motifs("test", **agreeing),
        "independent": xl.load_motifs("test", offset_agreement=0.25, seed=seed),
    }
    return Task(train, validation, tests, 12, 32)


def _load_archive(name: str, seed: int, updates: int, distill: float) -> Task:
    """All series of a set, half of each class to train with, a quarter each for validation and test, drawn anew by seed."""
    whole = read_archive(name)
    rng = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for label in range(len(whole.classes)):
        own = (whole.labels == label).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=rng)]
        half, rest = len(own) // 2, len(own) - len(own) // 2
        for part, rows in zip(parts, own.split([half, rest // 2, rest - rest // 2]), strict=True):
            part.append(rows)
    train, validation, test = (whole.subset(torch.cat(rows)) for rows in parts)
    scaling = measure_scaling(train)
    train, validation, test = (one.scaled(scaling) for one in (train, validation, test))
    epochs = math.ceil(updates / math.ceil(len(train) / BATCH))
    return Task(train, validation, {"test": test}, epochs, BATCH, distill)


def read_archive(name: str) -> xl.ArraySet:
    """Training and test series of one of aeon's sets together.

    Raises:
        SystemExit: where aeon is not installed.
    """
    found = find_spec("aeon")
    if found is None or found.origin is None:
        raise SystemExit("the data sets come with aeon: pip install aeon (none of its code is used)")
    start = Path(found.origin).parent / "datasets" / "data" / ARCHIVE[name]
    files = [read_ts(start.with_name(f"{start.name}_{part}.ts")) for part in ("TRAIN", "TEST")]
    values = torch.stack([one for one in chain(*(file.series or () for file in files)) if one is not None])
    names = [str(one) for one in chain(*(file.labels or () for file in files))]
    classes = tuple(sorted(set(names)))
    channels = values.shape[1]
    preprocess = xl.SeriesPreprocess((0.0,) * channels, (1.0,) * channels)
    return xl.ArraySet(values, torch.tensor([classes.index(one) for one in names]), classes, preprocess)
