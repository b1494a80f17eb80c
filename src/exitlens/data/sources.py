"""Data by name, in four disjoint splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from exitlens.data.arrays.blobs import load_blobs
from exitlens.data.arrays.motifs import load_motifs
from exitlens.data.arrays.raw import ArrayReading
from exitlens.data.arrays.reading import find_samples, is_array, read_array_parts
from exitlens.data.arrays.scaling import measure_scaling
from exitlens.data.arrays.sets import ArraySet
from exitlens.data.fashion import load_fashion, load_scenes
from exitlens.data.folders import load_torchvision
from exitlens.data.formats.columns import parse_columns
from exitlens.data.formats.detect import HUB, Format, find_format
from exitlens.data.formats.labelled import Parts
from exitlens.data.formats.named_parts import plan_splits, take_split
from exitlens.data.formats.reading import Reading, hash_source, read_parts
from exitlens.data.images import ImageSet
from exitlens.data.reviews import load_reviews
from exitlens.data.rows import TABLES
from exitlens.data.splits import SPLITS, SampleSet, Split, split_set
from exitlens.data.texts import RawTexts, TextSet, word_tokenizer
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, MODALITIES, SERIES, TEXT, VOLUME, Modality
from exitlens.types import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayPreprocess,
    MelSpectrogram,
    Preprocess,
    Preprocessing,
    SeriesPreprocess,
    TextPreprocess,
    VolumePreprocess,
)
from exitlens.types.tasks import TASKS

NAMES = ("scenes", "fashion", "reviews", "motifs", "blobs")
_MODALITIES: dict[str, Modality] = {"reviews": TEXT, "motifs": SERIES, "blobs": VOLUME}  # others are images
TORCHVISION = "torchvision:"


class Loaded(NamedTuple):
    """Splits by name, and lines for people on where they come from."""

    sets: Mapping[Split, SampleSet]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataSource:
    """Where samples come from and how they are split; the same values give the same splits.

    A source that comes in named parts keeps them: ``train``, ``validation`` (``val``, ``valid``, ``dev``), ``calibration``
    and ``test`` are subfolders, splits of a data set, or in the names of shards; what is missing is cut from ``train``.

    Attributes:
        name: of images ``scenes``, ``fashion``, ``torchvision:NAME``, or a folder ``class/image``; of texts ``reviews``, or
            a ``.csv`` or ``.jsonl`` file of texts and labels; of series ``motifs``, a ``.ts`` file (or a folder with
            ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``); of volumes ``blobs``; of either a folder ``class/file``; of vectors a
            ``.csv`` file of numbers and labels; of several kinds ``hf:NAME`` or ``hf:NAME:CONFIG`` (the hub of Hugging
            Face), a folder that ``datasets`` saved, Parquet or Arrow (a file, or a folder of them), a folder of images with
            ``metadata.csv``, or tar shards (a folder, a file, or a pattern).
        root: folder of torchvision's files.
        size: pixels (height and width) of scenes (0: 40) and of other images (0: 64); tokens of reviews (0: 32) and of
            other texts (0: 64); steps of motifs (0: 128) and other series, voxels of the sides of blobs (0: 20) and other
            volumes (0: as they come, of files).
        seed: of what is generated, and of random splits.
        background_agreement: of scenes; of reviews, how often the shop is one of the class's own (``shop_agreement``); of
            motifs and blobs likewise (``offset_agreement``).
        contents: SHA-256 over what decides the splits when it was first read (file names of a folder, bytes of a file of
            texts; of tables and shards, names, sizes and both ends of the files); a later difference is an error, because
            the splits would no longer be disjoint from what was trained on.
        columns: which columns to read, ``"image=NAME,label=NAME"``, or ``text=NAME``, ``series=NAME`` or ``features=A|B`` in
            place of the image; by default found by type. ``label=A|B|C`` are columns of 0 and 1, one for each label.
        group_by: a column, or a regular expression on file names (its first parentheses, if it has any): samples that agree
            in it belong together, and are never in different splits.
        split_by: a column that names the split of each sample.
        mel: of sounds, bands of the log-mel spectrogram that networks take (0: the waveform).
        task: ``multilabel``: the words of a label column have ``;`` between them, and a sample has any number of them. Lists
            of labels, and several columns of 0 and 1 (``label=A|B|C``), say so themselves.
    """

    name: str
    root: str = ""
    size: int = 0
    seed: int = 0
    background_agreement: float = 0.8
    contents: str = ""
    columns: str = ""
    group_by: str = ""
    split_by: str = ""
    mel: int = 0
    task: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @property
    def format(self) -> Format | None:
        """Of files; ``None`` for the demo's, generated and torchvision's data."""
        if self.name in NAMES or self.name.startswith(TORCHVISION):
            return None
        return find_format(self.name, self.columns, self._reserved) or "folder"

    @property
    def _reserved(self) -> tuple[str, ...]:
        return self.group_by, self.split_by

    @property
    def modality(self) -> Modality:
        """What kind of samples it gives."""
        kind = self.format
        if kind is None:
            return _MODALITIES.get(self.name, IMAGE)
        return find_samples(self.name, kind, self.columns, self._reserved)

    def load(
        self, split: Split, *, classes: Sequence[str] = (), skip_bad: bool = False, preprocess: Preprocessing | None = None
    ) -> SampleSet:
        """The samples of one split.

        Args:
            split: ``train``, ``validation``, ``calibration`` or ``test``.
            classes: class names of an existing network, for files.
            skip_bad: leave out images that cannot be read, and rows without text, label or group.
            preprocess: of an existing network. For texts tokenizer and length, in place of ``size``; by default the words
                of a file's training split make the tokenizer; reviews have masks with their own tokenizer only. For images
                of files size, mean and std (by default ImageNet's), for others mean and std (by default 0.5 and 0.25). For
                series, volumes and vectors of files channels, length or size, rate, mean and std, by default as they are in
                the training split.

        Raises:
            InputError, DataError: an unknown split or source, or data that cannot be read.
        """
        return self.load_splits([split], classes=classes, skip_bad=skip_bad, preprocess=preprocess).sets[split]

    def load_splits(
        self,
        splits: Collection[Split],
        *,
        classes: Sequence[str] = (),
        skip_bad: bool = False,
        preprocess: Preprocessing | None = None,
    ) -> Loaded:
        """Several splits at once, for which files are listed once; arguments and errors as of :meth:`load`."""
        if unknown := [split for split in splits if split not in SPLITS]:
            raise InputError(f"split: expected one of {SPLITS}, got {unknown[0]!r}")
        kind = self.format
        if kind is not None and self.contents and hash_source(self.name, kind) != self.contents:
            raise DataError(f"data: the files of {self.name} are not those of training: the splits would mix; train again")
        modality = self.modality
        if preprocess is not None and not isinstance(preprocess, modality.preprocess):
            theirs = next((one.plural for one in MODALITIES if isinstance(preprocess, one.preprocess)), "others")
            raise InputError(f"preprocess: it is for {theirs}, and {self.name} gives {modality.plural}: leave it out")
        if self.mel and (kind is None or modality is not SERIES):
            raise InputError(f"mel: it is for sounds, {self.name} has {modality.plural}: leave it out")
        if kind is None:
            return Loaded({split: self._load_named(split, preprocess) for split in splits}, ())
        if is_array(modality):
            return self._load_arrays(splits, kind, classes, skip_bad, preprocess)
        image = preprocess if isinstance(preprocess, Preprocess) else None
        pixels = image or Preprocess((self.size or 64,) * 2, IMAGENET_MEAN, IMAGENET_STD)
        parts = read_parts(self.name, kind, self._reading(), pixels, classes, skip_bad)
        found = {split: self._take(parts, split) for split in splits}
        if any(isinstance(part, RawTexts) for part in found.values()):
            text = preprocess if isinstance(preprocess, TextPreprocess) else None
            if text is None:
                words = found["train"] if "train" in found else self._take(parts, "train")
                text = TextPreprocess(word_tokenizer(words.texts), self.size or 64)
            found = {split: part.encode(text) for split, part in found.items()}
        return Loaded(found, describe_parts(parts, self, found))

    def _load_arrays(
        self, splits: Collection[Split], kind: Format, classes: Sequence[str], skip_bad: bool, known: Preprocessing | None
    ) -> Loaded:
        """Mean and standard deviation of the training split make the inputs of all, unless a network's are known."""
        assert known is None or isinstance(known, ArrayPreprocess)
        how = ArrayReading(self.size, MelSpectrogram(self.mel) if self.mel else None, known)
        parts, note = read_array_parts(self.name, kind, self._reading(), how, classes, skip_bad)
        found = {split: self._take(parts, split) for split in splits}
        if known is None:
            own = measure_scaling(found["train"] if "train" in found else self._take(parts, "train"), self.seed)
            found = {split: part.scaled(own) for split, part in found.items()}
        return Loaded(found, (*describe_parts(parts, self, found), *filter(None, [note])))

    def _take(self, parts: Parts, split: Split) -> Any:
        return take_split(parts.sets, split, self.seed, self.name, parts.group_names)

    def _reading(self) -> Reading:
        return Reading(self.columns, self.group_by, self.split_by, self.task)

    def _load_named(self, split: Split, preprocess: Preprocessing | None) -> SampleSet:
        if self.name == "reviews":
            return self._load_reviews(split, preprocess if isinstance(preprocess, TextPreprocess) else None)
        if self.name in ("motifs", "blobs"):
            return self._load_generated(split, preprocess)
        data = self._load_images(split)
        if not isinstance(preprocess, Preprocess):
            return data
        how = preprocess.fit_to(data.preprocess.size, data.images.shape[1])
        return ImageSet(data.images, data.labels, data.classes, data.masks, how, data.groups)

    def _load_generated(self, split: Split, preprocess: Preprocessing | None) -> ArraySet:
        how: dict[str, Any] = {"offset_agreement": self.background_agreement, "seed": self.seed}
        if isinstance(preprocess, SeriesPreprocess):
            how["length"] = preprocess.length or self.size or 128
        elif isinstance(preprocess, VolumePreprocess):
            how["size"] = preprocess.size[0]
        elif self.size:
            how["length" if self.name == "motifs" else "size"] = self.size
        data = load_motifs(split, **how) if self.name == "motifs" else load_blobs(split, **how)
        return data if preprocess is None else data.scaled(preprocess)  # type: ignore[arg-type]

    def _load_images(self, split: Split) -> ImageSet:
        if self.name == "scenes":
            agreement = self.background_agreement
            return load_scenes(split, background_agreement=agreement, seed=self.seed, size=self.size or 40)
        return load_fashion(split) if self.name == "fashion" else self._load_torchvision(split)

    def _load_reviews(self, split: Split, preprocess: TextPreprocess | None) -> TextSet:
        length = preprocess.length if preprocess is not None else self.size or 32
        data = load_reviews(split, shop_agreement=self.background_agreement, seed=self.seed, length=length)
        if preprocess is None or preprocess == data.preprocess:
            return data
        return TextSet(data.texts, data.labels, data.classes, preprocess)

    def _load_torchvision(self, split: Split) -> ImageSet:
        data = load_torchvision(self.name.removeprefix(TORCHVISION), self.root, train=split != "test")
        if split == "test":
            return data
        parts = split_set(data, (0.8, 0.1, 0.1), self.seed)
        return parts[SPLITS.index(split)]


def describe_parts(parts: Parts, source: DataSource, found: Mapping[Split, SampleSet]) -> tuple[str, ...]:
    """Lines for people: where the splits come from, samples, classes and groups, and what is not used."""
    lines = [f"splits: {plan_splits(tuple(parts.sets), source.name)}", *([parts.columns] if parts.columns else [])]
    if source.group_by:
        counts = [f"{len(part.groups.unique())} in {split}" for split, part in found.items() if part.groups is not None]
        lines.append(f"groups by '{source.group_by}': {len(parts.group_names)}, of which {', '.join(counts)}")
        if all(part.groups is not None and len(part.groups.unique()) == len(part) for part in found.values()):
            lines[-1] += ": no two samples are in one group"
    lines.append(", ".join(f"{split}: {describe_classes(part)}" for split, part in found.items()))
    lines += [f"{name!r} has no labels and is not used" for name in parts.unlabelled]
    return tuple(lines)


def describe_classes(part: SampleSet) -> str:
    """How many samples and classes a split has, and of how many samples each class."""
    several = part.labels.ndim == 2
    counts = part.labels.sum(0) if several else part.labels.bincount(minlength=len(part.classes))
    least, most = int(counts.min()), int(counts.max())
    each = f"{least} each" if least == most else f"{least} to {most} each"
    what = f"with {len(part.classes)} labels, any number to a sample" if several else f"of {len(part.classes)} classes"
    return f"{len(part):,} {part.modality.plural} {what} ({each})"


def open_source(
    name: str,
    *,
    root: str = "",
    size: int = 0,
    seed: int = 0,
    background_agreement: float = 0.8,
    columns: str = "",
    group_by: str = "",
    split_by: str = "",
    mel: int = 0,
    task: str = "",
) -> DataSource:
    """A :class:`DataSource` for a name, checked as far as can be without reading samples.

    Raises:
        InputError, DataError: a name that is neither known nor of files, or words that are no columns.
    """
    parse_columns(columns)
    if task not in ("", *TASKS):
        raise InputError(f"task: expected one of {TASKS}, or nothing where the data tell, got {task!r}")
    contents = ""
    if name.startswith(TORCHVISION):
        if not root:
            raise InputError(f"root: {name} needs the folder that holds its files")
    elif name not in NAMES:
        kind = find_format(name, columns, (group_by, split_by))
        if kind is None:
            files = f"a {' or '.join(TABLES)} file of texts or numbers, Parquet, .ts or .tar files"
            known = f"{', '.join(NAMES)}, {TORCHVISION}NAME, {HUB}NAME, {files}"
            raise DataError(f"data: no folder {name}; it can also be {known}.{suggest(name, NAMES)}")
        contents = hash_source(name, kind)
    if (name in NAMES or name.startswith(TORCHVISION)) and (columns or group_by or split_by or task == "multilabel"):
        words = "columns, group_by, split_by, task"
        raise InputError(f"{words}: they are for data from files, {name} has no columns: leave them out")
    return DataSource(name, root, size, seed, background_agreement, contents, columns, group_by, split_by, mel, task)
