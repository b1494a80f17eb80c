"""Data by name, in four disjoint splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypedDict, Unpack

from exitlens.data.assemble import Parts, Target, read_parts
from exitlens.data.columns import parse_columns
from exitlens.data.demo.garments import load_fashion, load_scenes
from exitlens.data.demo.reviews import load_reviews
from exitlens.data.demo.signals import load_blobs, load_motifs
from exitlens.data.folders import load_torchvision
from exitlens.data.formats import Format, find_format, find_samples, hash_source
from exitlens.data.lines import TABLES
from exitlens.data.rows import Reading
from exitlens.data.sets import ImageSet, SampleSet, measure_scaling
from exitlens.data.splits import SPLITS, Split, check_split, plan_splits, split_set, take_split
from exitlens.data.tables import HUB
from exitlens.data.texts import TextSet, word_tokenizer
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, MODALITIES, SERIES, TEXT, VOLUME, Modality
from exitlens.types.preprocessing import (
    MelSpectrogram,
    Preprocess,
    Preprocessing,
    SeriesPreprocess,
    TextPreprocess,
    VolumePreprocess,
)
from exitlens.types.tasks import TASKS

NAMES = ("scenes", "fashion", "reviews", "motifs", "blobs")
TORCHVISION = "torchvision:"
_MODALITIES: dict[str, Modality] = {"reviews": TEXT, "motifs": SERIES, "blobs": VOLUME}  # others are images


class Loaded(NamedTuple):
    """Splits by name, and lines for people on where they come from."""

    sets: Mapping[Split, SampleSet]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataSource:
    """Where samples come from and how they are split; the same values give the same splits.

    A source that comes in named parts keeps them: ``train``, ``validation`` (``val``, ``valid``, ``dev``), ``calibration``
    and ``test`` are subfolders, splits of a data set, or in the names of shards; a missing one is cut from ``train``.

    Attributes:
        name: ``scenes``, ``fashion``, ``reviews``, ``motifs``, ``blobs``, ``torchvision:NAME``; or files: a folder
            ``class/file`` of images, series or volumes; a ``.csv`` or ``.jsonl`` file of texts and labels, or of numbers; a
            ``.ts`` file (or a folder with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``); ``hf:NAME`` or ``hf:NAME:CONFIG`` (the
            hub of Hugging Face), a folder that ``datasets`` saved, Parquet or Arrow (a file or a folder), a folder of
            images with ``metadata.csv``, or tar shards (a folder, a file, or a pattern).
        root: folder of torchvision's files.
        size: pixels (height and width) of scenes (0: 40) and of other images (0: 64); tokens of reviews (0: 32) and of
            other texts (0: 64); steps of motifs (0: 128) and other series, voxels of the sides of blobs (0: 20) and other
            volumes (0: unchanged, for series and volumes from files).
        seed: seed of generated data, and of random splits.
        background_agreement: share of scenes whose background has the colour of their class; for reviews, motifs and blobs
            ``shop_agreement`` and ``offset_agreement``.
        contents: SHA-256 over the files that decide the splits, see :func:`~exitlens.data.formats.hash_source`; a later
            difference is an error, because the splits would no longer be disjoint from the training data.
        columns: which columns to read, ``"image=NAME,label=NAME"``, or ``text=NAME``, ``series=NAME`` or ``features=A|B`` in
            place of the image; by default found by type. ``label=A|B|C`` are columns of 0 and 1, one for each label.
        group_by: a column, or a regular expression on file names (its first parentheses, if it has any): samples that agree
            in it belong together, and are never in different splits.
        split_by: a column that names the split of each sample.
        mel: number of bands of the log-mel spectrogram that sounds become (0: networks take the waveform).
        task: ``multilabel``: a label column has any number of labels for a sample, with ``;`` between them. Lists of labels,
            and several columns of 0 and 1, need no such word.
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
        """Return a JSON-ready description."""
        return asdict(self)

    @property
    def is_built_in(self) -> bool:
        """True for generated, packaged and torchvision's data; False for a user's files."""
        return self.name in NAMES or self.name.startswith(TORCHVISION)

    @property
    def format(self) -> Format | None:
        """The format of files; ``None`` for built-in data."""
        if self.is_built_in:
            return None
        return find_format(self.name, self.columns, (self.group_by, self.split_by)) or "folder"

    @property
    def reading(self) -> Reading:
        """The columns to read, and those of groups and splits."""
        return Reading(self.columns, self.group_by, self.split_by, self.task)

    @property
    def modality(self) -> Modality:
        """The kind of its samples."""
        kind = self.format
        return _MODALITIES.get(self.name, IMAGE) if kind is None else find_samples(self.name, kind, self.reading)

    def load(
        self, split: Split, *, classes: Sequence[str] = (), skip_bad: bool = False, preprocess: Preprocessing | None = None
    ) -> SampleSet:
        """Load the samples of one split.

        Args:
            split: ``train``, ``validation``, ``calibration`` or ``test``.
            classes: class names of an existing network, for files.
            skip_bad: leave out images that cannot be read, and rows without text, label or group.
            preprocess: of an existing network. By default images of files have ImageNet's mean and std, others 0.5 and
                0.25; the training split makes the tokenizer of texts, and the mean and std of series, volumes and vectors.
                Reviews have masks with their own tokenizer only.
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
        """Load several splits at once, as :meth:`load` does; files are listed once."""
        for split in splits:
            check_split(split)
        kind = self.format
        if kind is not None and self.contents and hash_source(self.name, kind) != self.contents:
            problem = f"data: the files of {self.name} are not those of training: the splits would mix"
            raise DataError(f"{problem}. Fix: train again")
        modality = self.modality
        if preprocess is not None and not isinstance(preprocess, modality.preprocess):
            other = next((kind.plural for kind in MODALITIES if isinstance(preprocess, kind.preprocess)), "others")
            raise InputError(f"preprocess: it is for {other}, and {self.name} gives {modality.plural}. Fix: leave it out")
        if self.mel and (kind is None or modality is not SERIES):
            raise InputError(f"mel: it is for sounds, {self.name} has {modality.plural}. Fix: leave it out")
        if kind is None:
            return Loaded({split: self._load_built_in(split, preprocess) for split in splits}, ())
        target = Target(self.size, MelSpectrogram(self.mel) if self.mel else None, preprocess)
        parts = read_parts(self.name, kind, self.reading, target, classes, skip_bad)

        def take(split: Split) -> Any:
            return take_split(parts.sets, split, self.seed, self.name, parts.group_names)

        sets = {split: take(split) for split in splits}
        if preprocess is None and modality is not IMAGE:  # the training split makes the inputs of all
            train = sets["train"] if "train" in sets else take("train")
            if modality is TEXT:
                preprocess = TextPreprocess(word_tokenizer(train.texts), self.size or 64)
            else:
                scaling = measure_scaling(train, self.seed)
                sets = {split: part.scaled(scaling) for split, part in sets.items()}
        if modality is TEXT:
            sets = {split: part.encode(preprocess) for split, part in sets.items()}
        return Loaded(sets, self._describe(parts, sets))

    def _describe(self, parts: Parts, sets: Mapping[Split, SampleSet]) -> tuple[str, ...]:
        """Return lines for people on the origin of the splits, their samples, classes and groups, and unused parts."""
        lines = [f"splits: {plan_splits(tuple(parts.sets), self.name)}", *filter(None, [parts.columns])]
        if self.group_by:
            counts = [f"{len(part.groups.unique())} in {split}" for split, part in sets.items() if part.groups is not None]
            lines.append(f"groups by '{self.group_by}': {len(parts.group_names)}, of which {', '.join(counts)}")
            if all(part.groups is not None and len(part.groups.unique()) == len(part) for part in sets.values()):
                lines[-1] += ": no two samples are in one group"
        lines.append(", ".join(f"{split}: {_describe_classes(part)}" for split, part in sets.items()))
        lines += [f"{name!r} has no labels and is not used" for name in parts.unlabelled]
        return (*lines, *filter(None, [parts.note]))

    def _load_built_in(self, split: Split, preprocess: Preprocessing | None) -> SampleSet:
        agreement, seed, size = self.background_agreement, self.seed, self.size
        if self.name == "reviews":
            length = preprocess.length if isinstance(preprocess, TextPreprocess) else size or 32
            data = load_reviews(split, shop_agreement=agreement, seed=seed, length=length)
            if not isinstance(preprocess, TextPreprocess) or preprocess == data.preprocess:
                return data
            return TextSet(data.texts, data.labels, data.classes, preprocess)
        if self.name == "motifs":
            length = (preprocess.length if isinstance(preprocess, SeriesPreprocess) else 0) or size or 128
            series = load_motifs(split, offset_agreement=agreement, seed=seed, length=length)
            return series.scaled(preprocess) if isinstance(preprocess, SeriesPreprocess) else series
        if self.name == "blobs":
            side = preprocess.size[0] if isinstance(preprocess, VolumePreprocess) else size or 20
            volumes = load_blobs(split, offset_agreement=agreement, seed=seed, size=side)
            return volumes.scaled(preprocess) if isinstance(preprocess, VolumePreprocess) else volumes
        if self.name == "scenes":
            images = load_scenes(split, background_agreement=agreement, seed=seed, size=size or 40)
        elif self.name == "fashion":
            images = load_fashion(split)
        else:
            images = load_torchvision(self.name.removeprefix(TORCHVISION), self.root, train=split != "test")
            if split != "test":
                images = split_set(images, (0.8, 0.1, 0.1), seed)[SPLITS.index(split)]
        if not isinstance(preprocess, Preprocess):
            return images
        scaling = preprocess.fit_to(images.preprocess.size, images.images.shape[1])
        return ImageSet(images.images, images.labels, images.classes, images.masks, scaling, images.groups)


def _describe_classes(part: SampleSet) -> str:
    several = part.labels.ndim == 2
    counts = part.labels.sum(0) if several else part.labels.bincount(minlength=len(part.classes))
    low, high = int(counts.min()), int(counts.max())
    each = f"{low} each" if low == high else f"{low} to {high} each"
    what = f"with {len(part.classes)} labels, any number to a sample" if several else f"of {len(part.classes)} classes"
    return f"{len(part):,} {part.modality.plural} {what} ({each})"


class SourceSettings(TypedDict, total=False):
    """Settings of :func:`open_source`; :class:`DataSource` describes them."""

    root: str
    size: int
    seed: int
    background_agreement: float
    columns: str
    group_by: str
    split_by: str
    mel: int
    task: str


def open_source(name: str, **settings: Unpack[SourceSettings]) -> DataSource:
    """Return a :class:`DataSource` for a name, with its settings checked as far as possible without reading samples."""
    source = DataSource(name, **settings)
    parse_columns(source.columns)
    if source.task not in ("", *TASKS):
        raise InputError(f"task: expected one of {TASKS}, or nothing if the data tell, got {source.task!r}")
    if not source.is_built_in:
        kind = find_format(name, source.columns, (source.group_by, source.split_by))
        if kind is None:
            files = f"a {' or '.join(TABLES)} file of texts or numbers, Parquet, .ts or .tar files"
            known = f"{', '.join(NAMES)}, {TORCHVISION}NAME, {HUB}NAME, {files}"
            raise DataError(f"data: no folder {name}; it can also be {known}.{suggest(name, NAMES)}")
        return replace(source, contents=hash_source(name, kind))
    if name.startswith(TORCHVISION) and not source.root:
        raise InputError(f"root: {name} needs the folder that holds its files")
    if source.columns or source.group_by or source.split_by or source.task == "multilabel":
        words = "columns, group_by, split_by, task"
        raise InputError(f"{words}: they are for data from files, {name} has no columns. Fix: leave them out")
    return source
