"""Data by name, in four disjoint splits of which each is used for one thing only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exitlens.data.fashion import SPLITS, Split, load_fashion, load_scenes
from exitlens.data.folders import load_folder, load_torchvision, split_set
from exitlens.data.images import ImageSet
from exitlens.errors import DataError, InputError
from exitlens.types import Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARES = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}


@dataclass(frozen=True)
class DataSource:
    """Where images come from and how they are split; the same values give the same splits.

    Attributes:
        name: ``scenes``, ``fashion``, ``torchvision:NAME``, or a folder ``class/image`` (a folder that has the subfolders
            ``train``, ``validation``, ``calibration`` and ``test`` is taken as split already).
        root: folder of torchvision's files.
        size: pixels (height and width) of scenes and of folder images.
        seed: of scenes and of the random split of a folder.
        background_agreement: of scenes.
        contents: SHA-256 over the file names of a folder when it was first read; a later difference is an error, because
            the splits would no longer be disjoint from what was trained on.
    """

    name: str
    root: str = ""
    size: int = 0
    seed: int = 0
    background_agreement: float = 0.8
    contents: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def load(self, split: Split, *, classes: Sequence[str] = (), skip_bad: bool = False) -> ImageSet:
        """The images of one split.

        Args:
            split: ``train``, ``validation``, ``calibration`` or ``test``.
            classes: class names of an existing network, for folders.
            skip_bad: leave out unreadable files of a folder.

        Raises:
            InputError, DataError: an unknown split or source, or data that cannot be read.
        """
        if split not in SPLITS:
            raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
        if self.name == "scenes":
            agreement = self.background_agreement
            return load_scenes(split, background_agreement=agreement, seed=self.seed, size=self.size or 40)
        if self.name == "fashion":
            return load_fashion(split)
        if self.name.startswith("torchvision:"):
            return self._torchvision(split)
        return self._folder(split, classes, skip_bad)

    def _torchvision(self, split: Split) -> ImageSet:
        data = load_torchvision(self.name.removeprefix("torchvision:"), self.root, train=split != "test")
        if split == "test":
            return data
        parts = split_set(data, (0.8, 0.1, 0.1), self.seed)
        return parts[SPLITS.index(split)]

    def _folder(self, split: Split, classes: Sequence[str], skip_bad: bool) -> ImageSet:
        root = Path(self.name)
        preprocess = Preprocess((self.size or 64,) * 2, IMAGENET_MEAN, IMAGENET_STD)
        if self.contents and folder_contents(root) != self.contents:
            raise DataError(f"data: the files below {root} are not those of training: the splits would mix; train again")
        if all((root / name).is_dir() for name in SPLITS):
            return load_folder(root / split, preprocess, classes=classes, skip_bad=skip_bad)[0]
        data, _ = load_folder(root, preprocess, classes=classes, skip_bad=skip_bad)
        return split_set(data, list(SHARES.values()), self.seed)[SPLITS.index(split)]


def folder_contents(root: Path) -> str:
    """SHA-256 over the sorted relative names of the files below ``root``."""
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def open_source(name: str, *, root: str = "", size: int = 0, seed: int = 0, background_agreement: float = 0.8) -> DataSource:
    """A :class:`DataSource` for a name, checked as far as can be without reading images.

    Raises:
        InputError, DataError: a name that is neither known nor a folder.
    """
    contents = ""
    if name.startswith("torchvision:"):
        if not root:
            raise InputError(f"root: {name} needs the folder that holds its files")
    elif name not in ("scenes", "fashion"):
        if not Path(name).is_dir():
            raise DataError(f"data: no folder {name}; it can also be scenes, fashion or torchvision:NAME")
        contents = folder_contents(Path(name))
    return DataSource(name, root, size, seed, background_agreement, contents)
