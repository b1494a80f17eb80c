"""Labelled data by name: from files, generated or packaged, in four disjoint splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.data import demo
from exitlens.data.files import describe_folder, find_folder_kind, holds_masks, list_folders, load_folder, load_torchvision
from exitlens.data.formats import Format, find_format, find_samples, hash_source, open_rows
from exitlens.data.lines import TABLES
from exitlens.data.masks import choose_classes, load_masks
from exitlens.data.readers import PackedStrings
from exitlens.data.rows import ColumnChoice, Rows, check_rows, find_missing, match_groups, number_labels, parse_columns
from exitlens.data.sets import ArraySet, ImageSet, LazySet, SampleSet, measure_scaling
from exitlens.data.splits import SPLITS, Split, check_split, name_split, plan_splits, split_set, take_split
from exitlens.data.tables import HUB
from exitlens.data.texts import RawTexts, TextSet, word_tokenizer
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, MODALITIES, SERIES, TEXT, VOLUME, Modality
from exitlens.modalities.arrays import check_finite, find_gap
from exitlens.modalities.series import RawSeries, arrange_series, describe_raw, fit_length
from exitlens.types.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayPreprocess,
    MelSpectrogram,
    Preprocess,
    Preprocessing,
    SeriesPreprocess,
    TextPreprocess,
    VectorPreprocess,
)
from exitlens.types.tasks import BY_LABELS, CONTINUOUS, TASKS, count_answers

NAMES = ("scenes", "fashion", "reviews", "motifs", "blobs")
TORCHVISION = "torchvision:"
GARMENTS = 3  # in each scene with a class for each pixel
_MODALITIES: dict[str, Modality] = {"reviews": TEXT, "motifs": SERIES, "blobs": VOLUME}  # others are images
Assembled = LazySet | RawTexts | ArraySet


class Target(NamedTuple):
    """The form that samples are to have."""

    size: int = 0  # pixels (height and width), steps, or voxels of a volume's sides; 0: the usual, or unchanged
    mel: MelSpectrogram | None = None  # the spectrogram that sounds become
    known: Preprocessing | None = None  # preprocessing of an existing network, which takes precedence

    @property
    def pixels(self) -> Preprocess:
        """How images become inputs."""
        if isinstance(self.known, Preprocess):
            return self.known
        return Preprocess((self.size or 64,) * 2, IMAGENET_MEAN, IMAGENET_STD)


class Parts(NamedTuple):
    """The parts of a source."""

    sets: Mapping[str, Assembled]  # by name
    group_names: tuple[str, ...] = ()  # by number
    unlabelled: tuple[str, ...] = ()  # names of parts that have no labels
    columns: str = ""  # a line for people on the columns that were read
    note: str = ""  # a line for people on series that were cut or filled


def read_parts(
    name: str, kind: Format, choice: ColumnChoice, target: Target, classes: Sequence[str] = (), skip_bad: bool = False
) -> Parts:
    """Return the sets of a source by part; arrays are not scaled yet unless ``target`` knows their preprocessing.

    ``name`` is a path, pattern or hub name; ``classes`` are those of an existing network.
    """
    if choice.task == "segmentation" and kind != "masks":
        fix = "give a folder with images/ beside masks/ or annotations.json (docs/guides/data_sources.md)"
        raise InputError(f"task: {name} has no class for each pixel. Fix: {fix}")
    if kind in ("folder", "masks", "arrays"):
        return _read_folder(Path(name), kind, choice, target, classes, skip_bad)
    if target.mel is not None:
        raise InputError(f"mel: it is for folders of sounds, {name} is not one. Fix: leave it out")
    source = open_rows(name, kind, choice.task)
    columns = source.find_columns(choice)
    known = target.known.names if isinstance(target.known, VectorPreprocess) else ()
    if columns.role == "features" and known and set(known) <= source.kinds.keys():
        columns = columns._replace(inputs=known)
    parts = source.list_rows(columns, skip_bad=skip_bad)
    several = any(rows.several for rows in parts.values())
    if choice.task == "classes" and several:
        fix = "name one column of classes"
        raise InputError(f"task: {name} gives several labels a sample, the network one class. Fix: {fix}")
    arranged, preprocess, note = arrange_arrays(parts, name, target)
    assembled = make_sets(arranged, name, preprocess, classes, skip_bad, several or choice.task == "multilabel")
    return assembled._replace(columns="" if kind in ("texts", "series") else str(columns), note=note)


def arrange_arrays(
    parts: Mapping[str, Rows], origin: str, target: Target
) -> tuple[Mapping[str, Rows], Preprocess | ArrayPreprocess, str]:
    """Give the series or vectors of all parts one shape; a row that cannot have it gets a fault.

    Returned with them are their preprocessing, and a line for people on series that were cut or filled, or an empty one.
    """
    first = next(iter(parts.values()))
    if first.arrays is None:
        return _arrange_series(parts, origin, target) if first.series is not None else (parts, target.pixels, "")
    names, preprocess = first.features, target.known
    if not isinstance(preprocess, VectorPreprocess):
        preprocess = VectorPreprocess((0.0,) * len(names), (1.0,) * len(names), names)
    count = len(preprocess.mean)
    if len(names) != count:
        raise DataError(f"data: {origin}: expected {count} features as in training, got {len(names)}: {names}")
    arranged = {}
    for part, rows in parts.items():
        assert rows.arrays is not None
        gaps = (~torch.isfinite(rows.arrays)).any(1).nonzero().flatten().tolist()
        arranged[part] = rows._replace(faults={i: find_gap(rows.arrays[i], names) for i in gaps} | dict(rows.faults))
    return arranged, preprocess, ""


def _arrange_series(
    parts: Mapping[str, Rows], origin: str, target: Target
) -> tuple[Mapping[str, Rows], ArrayPreprocess, str]:
    present = [values for rows in parts.values() for values in rows.series or () if values is not None]
    if not present:
        reasons = [fault for rows in parts.values() for fault in rows.faults.values()]
        raise DataError(f"data: {origin} has no series that can be read{f': {reasons[0]}' if reasons else ''}")
    known = target.known
    preprocess = known if isinstance(known, SeriesPreprocess) else describe_raw(RawSeries(present[0]), target.size, None)
    lengths = torch.tensor([values.shape[1] for values in present])
    low, high = int(lengths.min()), int(lengths.max())
    if not preprocess.length and low < high:
        fix = "pass --size STEPS (size=STEPS) to cut longer ones, and to fill shorter ones with zeros, at the end"
        raise DataError(f"data: {origin} has series of {low} to {high} steps, and a batch needs one length. Fix: {fix}")
    length, arranged = preprocess.length or high, {}
    for part, rows in parts.items():
        faults, values = dict(rows.faults), torch.zeros(len(rows.names), len(preprocess.mean), length)
        for i, raw in enumerate(rows.series or ()):
            if raw is None or i in faults:
                continue
            try:
                check_finite(raw, "")
                values[i] = fit_length(arrange_series(RawSeries(raw), preprocess, ""), length)
            except DataError as error:
                faults[i] = str(error).removeprefix(": ")
        arranged[part] = rows._replace(series=None, arrays=values, faults=faults)
    cut, filled = int((lengths > length).sum()), int((lengths < length).sum())
    note = f"series: {length} steps; {cut} longer ones are cut, {filled} shorter ones filled with zeros, at the end"
    return arranged, preprocess, note if cut or filled else ""


def make_sets(
    parts: Mapping[str, Rows],
    origin: str,
    preprocess: Preprocess | ArrayPreprocess,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
    several: bool = False,
) -> Parts:
    """Return sets of images that are decoded when they are asked for, of texts, or of arrays, by part.

    ``classes`` are those of an existing network; by default those that the source knows, or those that occur, sorted.
    """
    missing = {name: len(find_missing(rows.labels or (), several)) for name, rows in parts.items()}
    unlabelled = tuple(name for name, rows in parts.items() if 0 < len(rows.names) == missing[name])
    parts = {name: rows for name, rows in parts.items() if name not in unlabelled}
    if not parts:
        raise DataError(f"data: {origin} has no labels: none of its rows has one")
    good, _ = check_rows(parts, skip_bad, several)
    known = next((rows.classes for rows in parts.values() if rows.classes), ())
    if numbers := [rows.numbers[list(good[name])] for name, rows in parts.items() if rows.numbers is not None]:
        labels, names = torch.cat(numbers), tuple(classes or known)
    else:
        words = [(rows.labels or ())[i] or "" for name, rows in parts.items() for i in good[name]]
        labels, names = number_labels(words, classes or known, origin, several)
    groups = {name: [rows.groups[i] or "" for i in good[name]] for name, rows in parts.items() if rows.groups is not None}
    ids, group_names = _number_groups(groups)
    sets: dict[str, Assembled] = {}
    counts = [len(good[name]) for name in parts]
    for (name, rows), numbers in zip(parts.items(), labels.split(counts), strict=True):
        chosen = torch.tensor(good[name], dtype=torch.int64)
        whole: Assembled
        if rows.arrays is not None:
            assert not isinstance(preprocess, Preprocess)
            whole = ArraySet(rows.arrays[chosen], numbers, names, preprocess, groups=ids.get(name))
        elif rows.images is None:
            texts = rows.texts or ()
            packed = texts if isinstance(texts, PackedStrings) else PackedStrings((text or "").strip() for text in texts)
            whole = RawTexts(packed.subset(chosen), numbers, names, ids.get(name))
        else:
            assert isinstance(preprocess, Preprocess)
            reader = rows.images(preprocess)
            every = numbers.new_zeros(len(reader), *numbers.shape[1:]).index_copy(0, chosen, numbers)
            whole = LazySet(reader, every, names, preprocess, skip_bad=skip_bad).subset(chosen)
            whole.groups = ids.get(name)
        if rows.splits is None:
            sets[name] = whole
            continue
        splits = [rows.splits[i] or "" for i in good[name]]
        for split in sorted(set(splits)):
            if name_split(split) is None:
                expected = "expected train, validation, calibration and test"
                raise DataError(f"split_by: {origin} has the split {split!r}: {expected}")
            sets[split] = whole.subset(torch.tensor([i for i, other in enumerate(splits) if other == split]))
    return Parts(sets, group_names, unlabelled)


def _number_groups(parts: Mapping[str, Sequence[str]]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the number ``(N,)`` of each sample's group by part, and the names of all groups by number."""
    names = tuple(sorted({name for part in parts.values() for name in part}))
    numbers = {name: i for i, name in enumerate(names)}
    ids = {part: torch.tensor([numbers[name] for name in words], dtype=torch.int64) for part, words in parts.items()}
    return ids, names


def _read_folder(
    root: Path, kind: Format, choice: ColumnChoice, target: Target, classes: Sequence[str], skip_bad: bool
) -> Parts:
    """Return the sets of a folder of class folders or of masks, or of folders ``train`` and so on that hold them."""
    preprocess: Preprocess | ArrayPreprocess = target.pixels
    note, what, label = "", "class folders", "one class for an image, its folder"
    if kind == "masks":
        what, label = "images and masks", "one class for each pixel"
    if kind == "arrays":
        known = target.known if isinstance(target.known, ArrayPreprocess) else None
        preprocess = known or describe_folder(root, find_folder_kind(root), target.size, target.mel)
        if isinstance(preprocess, SeriesPreprocess) and preprocess.length:
            cut = f"longer ones are cut to {preprocess.length} steps"
            note = f"series: {cut}, shorter ones filled with zeros, at the end"
    if choice.columns or choice.split_by:
        raise InputError(f"columns, split_by: {root} is a folder of {what}, without columns. Fix: leave them out")
    if choice.task in ("multilabel", *CONTINUOUS) or (choice.task == "classes" and kind == "masks"):
        several = "for several labels or numbers give a table (metadata.csv beside images)"
        fix = "give class folders" if choice.task == "classes" else several
        raise InputError(f"task: {root} has {label}. Fix: {fix}")
    folders = {path.name: path for path in list_folders(root)}
    splits = {word: path for word, path in folders.items() if name_split(word)}
    whole = kind == "masks" or len(splits) == len(folders) or set(SPLITS) <= folders.keys()
    folders = splits if whole and any(name_split(word) == "train" for word in splits) else {"": root}
    sets: dict[str, LazySet] = {}
    unlabelled: tuple[str, ...] = ()
    if isinstance(preprocess, Preprocess) and kind == "masks":
        classes = choose_classes(root, classes)
        unlabelled = tuple(word for word, path in folders.items() if not holds_masks(path, splits=False))
        folders = {word: path for word, path in folders.items() if word not in unlabelled}
        sets |= {word: load_masks(path, preprocess, classes=classes, skip_bad=skip_bad) for word, path in folders.items()}
    else:
        classes = tuple(classes) or tuple(path.name for path in list_folders(folders.get("train", root)))
        sets |= {word: load_folder(path, preprocess, classes=classes, skip_bad=skip_bad) for word, path in folders.items()}
    groups: dict[str, list[str]] = {}
    for word, data in sets.items() if choice.group_by else ():
        start = len(str(folders[word])) + 1
        groups[word] = match_groups(choice.group_by, [data.name(i)[start:] for i in range(len(data))])
    ids, names = _number_groups(groups)
    for word in ids:
        sets[word].groups = ids[word]
    return Parts(sets, names, unlabelled, note=note)


class Loaded(NamedTuple):
    """Splits by name, lines for people on where they come from, and the parts of the source that all splits come from."""

    sets: Mapping[Split, SampleSet]
    notes: tuple[str, ...]
    parts: tuple[SampleSet, ...] = ()


@dataclass(frozen=True)
class DataSource:
    """Where samples come from and how they are split; the same values give the same splits.

    A source that comes in named parts keeps them: ``train``, ``validation`` (``val``, ``valid``, ``dev``), ``calibration``
    and ``test`` are subfolders, splits of a data set, or in the names of shards; a missing one is cut from ``train``.

    Attributes:
        name: built-in data (:data:`NAMES`), ``torchvision:NAME``, ``hf:NAME`` or ``hf:NAME:CONFIG`` (the hub of Hugging
            Face), or files of a :data:`~exitlens.data.formats.Format`, see ``docs/guides/data_sources.md``.
        root: folder of torchvision's files.
        size: pixels (height and width) of scenes (0: 40) and other images (0: 64); tokens of reviews (0: 32) and other texts
            (0: 64); steps of motifs (0: 128), voxels of a side of blobs (0: 20); of series and volumes in files (0: all).
        seed: seed of generated data, and of random splits.
        background_agreement: share of scenes whose background has the colour of their class; for reviews, motifs and blobs
            ``shop_agreement`` and ``offset_agreement``.
        contents: hash of the files that decide the splits; if it differs later that is an error, because the splits
            would no longer be disjoint from the training data.
        columns: the columns to read, see :func:`~exitlens.data.rows.parse_columns`; by default found by type.
        group_by: a column, or a regular expression on file names (its first parentheses, if it has any): samples that agree
            in it share a split.
        split_by: a column that names the split of each sample.
        mel: number of bands of the log-mel spectrogram that sounds become (0: networks take the waveform).
        task: ``multilabel``: a label column has any number of labels for a sample, with ``;`` between them;
            ``segmentation``: a class for each pixel, which folders with masks imply; of scenes, several garments in each;
            ``regression``: labels are numbers; ``embedding``: there are none.
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

    @property
    def is_built_in(self) -> bool:
        """True for generated, packaged and torchvision's data."""
        return self.name in NAMES or self.name.startswith(TORCHVISION)

    @property
    def format(self) -> Format | None:
        """The format of files; ``None`` for built-in data."""
        if self.is_built_in:
            return None
        return find_format(self.name, self.columns, (self.group_by, self.split_by)) or "folder"

    @property
    def choice(self) -> ColumnChoice:
        """The columns to read, and those of groups and splits."""
        return ColumnChoice(self.columns, self.group_by, self.split_by, self.task)

    @property
    def modality(self) -> Modality:
        """The kind of its samples."""
        kind = self.format
        return _MODALITIES.get(self.name, IMAGE) if kind is None else find_samples(self.name, kind, self.choice)

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
        """Load several splits as :meth:`load` does; files are listed once."""
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
        parts = read_parts(self.name, kind, self.choice, target, classes, skip_bad)

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
        used = [parts.sets[name] for name in plan_splits(tuple(parts.sets), self.name).parts.values()]
        return Loaded(sets, self._describe(parts, sets), tuple(part for part in used if isinstance(part, LazySet)))

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

    def _load_built_in(self, split: Split, preprocess: Any) -> SampleSet:
        agreement, seed, size = self.background_agreement, self.seed, self.size
        if self.name == "reviews":
            length = preprocess.length if preprocess else size or 32
            data = demo.load_reviews(split, shop_agreement=agreement, seed=seed, length=length)
            if preprocess in (None, data.preprocess):
                return data
            return TextSet(data.texts, data.labels, data.classes, preprocess)
        if self.name in ("motifs", "blobs"):
            if self.name == "motifs":
                length = (preprocess.length if preprocess else 0) or size or 128
                arrays = demo.load_motifs(split, offset_agreement=agreement, seed=seed, length=length)
            else:
                side = preprocess.size[0] if preprocess else size or 20
                arrays = demo.load_blobs(split, offset_agreement=agreement, seed=seed, size=side)
            return arrays.scaled(preprocess) if preprocess else arrays
        if self.name == "scenes":
            images = demo.load_scenes(split, background_agreement=agreement, seed=seed, size=size or 40)
            images = demo.label_pixels(images, GARMENTS, seed) if self.task == "segmentation" else images
        elif self.name == "fashion":
            images = demo.load_fashion(split)
        else:
            images = load_torchvision(self.name.removeprefix(TORCHVISION), self.root, train=split != "test")
            if split != "test":
                images = split_set(images, (0.8, 0.1, 0.1), seed)[SPLITS.index(split)]
        if preprocess is None:
            return images
        scaling = preprocess.fit_to(images.preprocess.size, images.images.shape[1])
        return ImageSet(images.images, images.labels, images.classes, images.masks, scaling, images.groups)


def _describe_classes(part: SampleSet) -> str:
    if part.task not in BY_LABELS:
        counted = f" with {count_answers(part.task, len(part.classes))}" if part.classes else ""
        return f"{len(part):,} {part.modality.plural}{counted}"
    several = part.labels.ndim == 2
    counts = part.labels.sum(0) if several else part.labels.bincount(minlength=len(part.classes))
    low, high = int(counts.min()), int(counts.max())
    each = f"{low} each" if low == high else f"{low} to {high} each"
    what = f"with {len(part.classes)} labels, any number to a sample" if several else f"of {len(part.classes)} classes"
    return f"{len(part):,} {part.modality.plural} {what} ({each})"


def open_source(name: str, **settings: Any) -> DataSource:
    """Return a :class:`DataSource` with these attributes, checked as far as possible without reading samples."""
    source = DataSource(name, **settings)
    parse_columns(source.columns)
    if source.task not in ("", *TASKS):
        raise InputError(f"task: expected one of {TASKS}, or nothing if the data tell, got {source.task!r}")
    if not source.is_built_in:
        kind = find_format(name, source.columns, (source.group_by, source.split_by))
        if kind is None:
            there = f"{name} is a file of another kind" if Path(name).exists() else f"there is no file or folder {name}"
            files = f"a {' or '.join(TABLES)} file of texts or numbers, Parquet, .ts or .tar files"
            fix = f"give a folder with a subfolder of files for each class, {files}, {TORCHVISION}NAME or {HUB}NAME"
            beside = sorted({path.name for path in Path(name).parent.glob("*")} - {Path(name).name})
            close = suggest(Path(name).name, [*NAMES, *beside], cutoff=0.7)
            raise DataError(f"data: {there}. Fix: {fix}; or generated data: {', '.join(NAMES)}.{close}")
        return replace(source, contents=hash_source(name, kind))
    if name.startswith(TORCHVISION) and not source.root:
        raise InputError(f"root: {name} needs the folder that holds its files")
    if source.task == "segmentation" and name != "scenes":
        raise InputError(f"task: {name} has no class for each pixel. Fix: give a folder with masks, or scenes")
    if source.columns or source.group_by or source.split_by or source.task in ("multilabel", *CONTINUOUS):
        words = "columns, group_by, split_by, task"
        raise InputError(f"{words}: they are for data from files, {name} has no columns. Fix: leave them out")
    return source
