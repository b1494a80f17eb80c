"""Data by name, in four disjoint splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exitlens.data.fashion import load_fashion, load_scenes
from exitlens.data.folders import load_folder, load_torchvision
from exitlens.data.images import ImageSet
from exitlens.data.lazy import LazyImages
from exitlens.data.loading.listing import hash_folder
from exitlens.data.reviews import load_reviews
from exitlens.data.rows import TABLES, read_bytes
from exitlens.data.splits import SPLITS, SampleSet, Split, split_set
from exitlens.data.texts import RawTexts, TextSet, read_texts, word_tokenizer
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, TEXT, Modality
from exitlens.types import Preprocess, TextPreprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARES = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}
NAMES = ("scenes", "fashion", "reviews")


@dataclass(frozen=True)
class DataSource:
    """Where images or texts come from and how they are split; the same values give the same splits.

    Attributes:
        name: of images ``scenes``, ``fashion``, ``torchvision:NAME``, or a folder ``class/image`` (a folder that has the
            subfolders ``train``, ``validation``, ``calibration`` and ``test`` is taken as split already); of texts
            ``reviews``, or a ``.csv`` or ``.jsonl`` file of texts and labels.
        root: folder of torchvision's files.
        size: pixels (height and width) of scenes (0: 40) and of folder images (0: 64); tokens of reviews (0: 32) and of
            texts from a file (0: 64).
        seed: of scenes and reviews, and of the random split of a folder or file.
        background_agreement: of scenes; of reviews, how often the shop is one of the class's own (``shop_agreement``).
        contents: SHA-256 over the file names of a folder, or over the bytes of a file, when it was first read; a later
            difference is an error, because the splits would no longer be disjoint from what was trained on.
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

    @property
    def modality(self) -> Modality:
        """What kind of samples it gives."""
        return TEXT if self.name == "reviews" or is_text_file(self.name) else IMAGE

    def load(
        self, split: Split, *, classes: Sequence[str] = (), skip_bad: bool = False, preprocess: TextPreprocess | None = None
    ) -> SampleSet:
        """The images or texts of one split.

        Args:
            split: ``train``, ``validation``, ``calibration`` or ``test``.
            classes: class names of an existing network, for folders and files.
            skip_bad: leave out unreadable images of a folder, or rows of a file.
            preprocess: tokenizer and length of an existing network, in place of ``size``, for texts. By default the words of
                a file's training split make the tokenizer. Reviews have masks with their own tokenizer only.

        Raises:
            InputError, DataError: an unknown split or source, or data that cannot be read.
        """
        if split not in SPLITS:
            raise InputError(f"split: expected one of {SPLITS}, got {split!r}")
        if preprocess is not None and self.modality is not TEXT:
            raise InputError(f"preprocess: it is for texts, and {self.name} gives images: leave it out")
        if self.name == "reviews":
            return self._load_reviews(split, preprocess)
        if self.modality is TEXT:
            return self._load_file(split, classes, skip_bad, preprocess)
        if self.name == "scenes":
            agreement = self.background_agreement
            return load_scenes(split, background_agreement=agreement, seed=self.seed, size=self.size or 40)
        if self.name == "fashion":
            return load_fashion(split)
        if self.name.startswith("torchvision:"):
            return self._load_torchvision(split)
        return self._load_folder(split, classes, skip_bad)

    def _load_reviews(self, split: Split, preprocess: TextPreprocess | None) -> TextSet:
        length = preprocess.length if preprocess is not None else self.size or 32
        data = load_reviews(split, shop_agreement=self.background_agreement, seed=self.seed, length=length)
        if preprocess is None or preprocess == data.preprocess:
            return data
        return TextSet(data.texts, data.labels, data.classes, preprocess)

    def _load_file(self, split: Split, classes: Sequence[str], skip_bad: bool, preprocess: TextPreprocess | None) -> TextSet:
        path = Path(self.name)
        if self.contents and hash_file(path) != self.contents:
            raise DataError(f"data: {path} is not the file of training: the splits would mix; train again")
        parts = split_set(RawTexts(*read_texts(path, classes, skip_bad=skip_bad)), list(SHARES.values()), self.seed)
        part = parts[SPLITS.index(split)]
        preprocess = preprocess or TextPreprocess(word_tokenizer(parts[0].texts), self.size or 64)
        return TextSet(part.texts, part.labels, part.classes, preprocess)

    def _load_torchvision(self, split: Split) -> ImageSet:
        data = load_torchvision(self.name.removeprefix("torchvision:"), self.root, train=split != "test")
        if split == "test":
            return data
        parts = split_set(data, (0.8, 0.1, 0.1), self.seed)
        return parts[SPLITS.index(split)]

    def _load_folder(self, split: Split, classes: Sequence[str], skip_bad: bool) -> LazyImages:
        root = Path(self.name)
        preprocess = Preprocess((self.size or 64,) * 2, IMAGENET_MEAN, IMAGENET_STD)
        if self.contents and hash_folder(root) != self.contents:
            raise DataError(f"data: the files below {root} are not those of training: the splits would mix; train again")
        if all((root / name).is_dir() for name in SPLITS):
            return load_folder(root / split, preprocess, classes=classes, skip_bad=skip_bad)[0]
        data, _ = load_folder(root, preprocess, classes=classes, skip_bad=skip_bad)
        return split_set(data, list(SHARES.values()), self.seed)[SPLITS.index(split)]


def is_text_file(name: str) -> bool:
    """Whether a source of this name is a file of texts; it need not exist."""
    return Path(name).suffix.lower() in TABLES and not Path(name).is_dir()


def hash_file(path: Path) -> str:
    """SHA-256 over the file's bytes."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def open_source(name: str, *, root: str = "", size: int = 0, seed: int = 0, background_agreement: float = 0.8) -> DataSource:
    """A :class:`DataSource` for a name, checked as far as can be without reading images or texts.

    Raises:
        InputError, DataError: a name that is neither known nor a folder or file of texts.
    """
    contents = ""
    if name.startswith("torchvision:"):
        if not root:
            raise InputError(f"root: {name} needs the folder that holds its files")
    elif is_text_file(name):
        contents = hash_file(Path(name))
    elif name not in NAMES:
        if not Path(name).is_dir():
            known = f"{', '.join(NAMES)}, torchvision:NAME, or a {' or '.join(TABLES)} file of texts"
            raise DataError(f"data: no folder {name}; it can also be {known}.{suggest(name, NAMES)}")
        contents = hash_folder(Path(name))
    return DataSource(name, root, size, seed, background_agreement, contents)
