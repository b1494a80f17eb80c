"""From rows to labelled sets: by part, before they are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.data.checks import number_groups, number_labels
from exitlens.data.files import describe_folder, find_folder_kind, list_folders
from exitlens.data.folders import load_arrays, load_folder
from exitlens.data.formats import Format, open_rows
from exitlens.data.packed import PackedStrings
from exitlens.data.readers import EncodedImages
from exitlens.data.rows import Reading, Rows, check_rows, find_missing, match_groups
from exitlens.data.sets import ArraySet, LazySet
from exitlens.data.splits import SPLITS, name_split
from exitlens.data.texts import RawTexts
from exitlens.errors import DataError, InputError
from exitlens.modalities.arrays import check_finite
from exitlens.modalities.series import RawSeries, arrange_series, describe_raw, fit_length
from exitlens.types.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayPreprocess,
    MelSpectrogram,
    Preprocess,
    Preprocessing,
    SeriesPreprocess,
    VectorPreprocess,
)

Assembled = LazySet | RawTexts | ArraySet


class Target(NamedTuple):
    """The form that samples are to have."""

    size: int = 0  # pixels (height and width), steps, or voxels of a volume's sides; 0: the usual, or unchanged
    mel: MelSpectrogram | None = None  # of sounds, the spectrogram to make
    known: Preprocessing | None = None  # of an existing network, which comes before the others

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
    name: str, kind: Format, reading: Reading, target: Target, classes: Sequence[str] = (), skip_bad: bool = False
) -> Parts:
    """Return the sets of a source by part; images and files are decoded when they are asked for.

    ``name`` is a path, pattern or hub name; ``classes`` are those of an existing network. Series, volumes and vectors have
    mean 0 and standard deviation 1 unless ``target`` knows them.
    """
    if kind in ("folder", "arrays"):
        return _read_folder(Path(name), kind, reading, target, classes, skip_bad)
    if target.mel is not None:
        raise InputError(f"mel: it is for folders of sounds, {name} is not one. Fix: leave it out")
    source = open_rows(name, kind, reading.task)
    columns = source.find_columns(reading)
    known = target.known.names if isinstance(target.known, VectorPreprocess) else ()
    if columns.role == "features" and known and set(known) <= source.kinds.keys():
        columns = columns._replace(inputs=known)
    parts = source.list_rows(columns, skip_bad=skip_bad)
    several = any(rows.several for rows in parts.values())
    if reading.task == "classes" and several:
        fix = "name one column of classes"
        raise InputError(f"task: {name} gives several labels a sample, the network one class. Fix: {fix}")
    arranged, preprocess, note = arrange_arrays(parts, name, target)
    assembled = make_sets(arranged, name, preprocess, classes, skip_bad, several or reading.task == "multilabel")
    return assembled._replace(columns="" if kind in ("texts", "series") else str(columns), note=note)


def arrange_arrays(
    parts: Mapping[str, Rows], origin: str, target: Target
) -> tuple[Mapping[str, Rows], Preprocess | ArrayPreprocess, str]:
    """Give the series or vectors of all parts one shape; a row that cannot have it gets a fault.

    Returned with them are their preprocessing, and a line for people on series that were cut or filled, or none. Series of
    different length, if no length is asked for, and no series at all are a :class:`DataError`.
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
        arranged[part] = rows._replace(faults={i: _find_fault(rows.arrays[i], names) for i in gaps} | dict(rows.faults))
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
            if fault := _find_fault(raw):
                faults[i] = fault
                continue
            try:
                values[i] = fit_length(arrange_series(RawSeries(raw), preprocess, ""), length)
            except DataError as error:
                faults[i] = str(error).removeprefix(": ")
        arranged[part] = rows._replace(series=None, arrays=values, faults=faults)
    cut, filled = int((lengths > length).sum()), int((lengths < length).sum())
    note = f"series: {length} steps; {cut} longer ones are cut, {filled} shorter ones filled with zeros, at the end"
    return arranged, preprocess, note if cut or filled else ""


def _find_fault(values: Tensor, names: Sequence[str] = ()) -> str:
    try:
        check_finite(values, "", names)
    except DataError as error:
        return str(error).removeprefix(": ")
    return ""


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
    ``skip_bad`` leaves out rows without label, group or text, and images that cannot be read.
    """
    counts = {name: (len(find_missing(rows.labels or (), several)), len(rows.names)) for name, rows in parts.items()}
    unlabelled = tuple(name for name, (missing, total) in counts.items() if 0 < total == missing)
    parts = {name: rows for name, rows in parts.items() if name not in unlabelled}
    if not parts:
        raise DataError(f"data: {origin} has no labels: none of its rows has one")
    good, _ = check_rows(parts, skip_bad, several)
    labels = {name: [(rows.labels or ())[i] or "" for i in good[name]] for name, rows in parts.items()}
    known = next((rows.classes for rows in parts.values() if rows.classes), ())
    _, names = number_labels([word for words in labels.values() for word in words], classes or known, origin, several)
    groups = {name: [rows.groups[i] or "" for i in good[name]] for name, rows in parts.items() if rows.groups is not None}
    group_names = tuple(sorted({group for words in groups.values() for group in words}))
    sets: dict[str, Assembled] = {}
    for name, rows in parts.items():
        numbers, _ = number_labels(labels[name], names, origin, several)
        ids = number_groups(groups[name], group_names) if name in groups else None
        chosen = torch.tensor(good[name], dtype=torch.int64)
        whole: Assembled
        if rows.arrays is not None:
            assert not isinstance(preprocess, Preprocess)
            whole = ArraySet(rows.arrays[chosen], numbers, names, preprocess, groups=ids)
        elif rows.images is None:
            texts = rows.texts or ()
            packed = texts if isinstance(texts, PackedStrings) else PackedStrings((text or "").strip() for text in texts)
            whole = RawTexts(packed.subset(chosen), numbers, names, ids)
        else:
            assert isinstance(preprocess, Preprocess)
            whole = _make_lazy_set(rows.images(preprocess), chosen, numbers, ids, names, preprocess, skip_bad)
        if rows.splits is None:
            sets[name] = whole
            continue
        words = [rows.splits[i] or "" for i in good[name]]
        for word in sorted(set(words)):
            if name_split(word) is None:
                expected = "expected train, validation, calibration and test"
                raise DataError(f"split_by: {origin} has the split {word!r}: {expected}")
            sets[word] = whole.subset(torch.tensor([i for i, w in enumerate(words) if w == word]))
    return Parts(sets, group_names, unlabelled)


def _make_lazy_set(
    reader: EncodedImages,
    chosen: Tensor,
    labels: Tensor,
    groups: Tensor | None,
    classes: tuple[str, ...],
    preprocess: Preprocess,
    skip_bad: bool,
) -> LazySet:
    """Return the set of the chosen images ``(n,)`` of a reader, whose labels and groups are given."""

    def spread(values: Tensor) -> Tensor:  # (n,...) of the chosen images -> (N,...) of all
        return values.new_zeros(len(reader), *values.shape[1:]).index_copy(0, chosen, values)

    every = None if groups is None else spread(groups)
    return LazySet(reader, spread(labels), classes, preprocess, every, skip_bad).subset(chosen)


def _read_folder(
    root: Path, kind: Format, reading: Reading, target: Target, classes: Sequence[str], skip_bad: bool
) -> Parts:
    """Return the sets of a folder of class folders, or of folders ``train``, ``test`` and so on that hold them."""
    load: Callable[..., LazySet]
    if kind == "folder":
        load, note = partial(load_folder, preprocess=target.pixels, skip_bad=skip_bad), ""
    else:
        modality = find_folder_kind(root)
        known = target.known if isinstance(target.known, ArrayPreprocess) else None
        preprocess = known or describe_folder(root, modality, target.size, target.mel)
        length = preprocess.length if isinstance(preprocess, SeriesPreprocess) else 0
        note = f"series: longer ones are cut to {length} steps, shorter ones filled with zeros, at the end" if length else ""
        load = partial(load_arrays, preprocess=preprocess, skip_bad=skip_bad)
    if reading.columns or reading.split_by:
        raise InputError(f"columns, split_by: {root} is a folder of class folders, without columns. Fix: leave them out")
    if reading.task == "multilabel":
        fix = "for several labels give a table of the images"
        raise InputError(f"task: {root} has one class for an image, its folder. Fix: {fix}")
    if not root.is_dir():
        raise DataError(f"data: no folder {root}. Fix: give a folder with one subfolder of images per class")
    folders = {path.name: path for path in list_folders(root)}
    splits = {word: path for word, path in folders.items() if name_split(word)}
    whole = len(splits) == len(folders) or set(SPLITS) <= folders.keys()
    folders = splits if whole and any(name_split(word) == "train" for word in splits) else {"": root}
    classes = tuple(classes) or tuple(path.name for path in list_folders(folders.get("train", root)))
    sets = {word: load(path, classes=classes) for word, path in folders.items()}
    if not reading.group_by:
        return Parts(sets, note=note)
    groups = {}
    for word, data in sets.items():
        start = len(str(folders[word])) + 1
        groups[word] = match_groups(reading.group_by, [data.reader.name(i)[start:] for i in range(len(data))])
    names = tuple(sorted({group for words in groups.values() for group in words}))
    for word, data in sets.items():
        data.groups = number_groups(groups[word], names)
    return Parts(sets, names, note=note)
