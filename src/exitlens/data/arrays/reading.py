"""Labelled series, volumes and vectors from files, in whichever format: as sets by part, before they are split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from exitlens.data.arrays.files import SUFFIXES, describe_files, find_file_kind, list_first, load_arrays
from exitlens.data.arrays.raw import ArrayReading, RawPart, arrange_parts
from exitlens.data.arrays.sets import KINDS, LazyArrays
from exitlens.data.arrays.tables import NumberTable
from exitlens.data.arrays.ts import find_ts_files, read_ts
from exitlens.data.formats.detect import Format
from exitlens.data.formats.labelled import Parts, make_sets
from exitlens.data.formats.reading import Reading, read_folder
from exitlens.data.formats.shards import open_shards
from exitlens.data.formats.tables import open_table
from exitlens.errors import DataError, InputError
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, Modality
from exitlens.types import ArrayPreprocess, SeriesPreprocess, VectorPreprocess


def find_samples(name: str, kind: Format, columns: str, reserved: Sequence[str] = ()) -> Modality:
    """What kind of samples a source has; tables, shards and the first file of a folder are opened to see.

    ``reserved`` are columns with other uses (groups, splits).
    """
    if kind in ("texts", "folder"):
        return TEXT if kind == "texts" else IMAGE
    if kind == "series":
        return SERIES
    if kind == "arrays":
        return _find_folder_kind(Path(name))
    if kind == "numbers":
        chosen = open_numbers(name, kind).find_columns(columns, reserved)
    elif kind == "shards":
        chosen = open_shards(name).find_columns(columns, reserved)
    else:
        chosen = open_table(name, kind).find_columns(columns, reserved)
    return TEXT if chosen.text else SERIES if chosen.series else VECTOR if chosen.features else IMAGE


def is_array(kind: Modality) -> bool:
    """Whether its samples are series, volumes or vectors."""
    return kind in KINDS


def read_array_parts(
    name: str, kind: Format, reading: Reading, how: ArrayReading, classes: Sequence[str] = (), skip_bad: bool = False
) -> tuple[Parts, str]:
    """The sets of a source by part, with mean 0 and standard deviation 1 where ``how`` knows no others, and a line or none.

    Args:
        name: path, pattern or hub name.
        kind: its format, see :func:`~exitlens.data.formats.detect.find_format`.
        reading: columns, groups and splits.
        how: length or size.
        classes: of an existing network, in label order.
        skip_bad: leave out what cannot be read.

    Raises:
        DataError: data that cannot be read; InputError: words that this format has no use for.
    """
    if kind == "arrays":
        return _read_array_folder(Path(name), reading, how, classes, skip_bad)
    if how.mel is not None:
        raise InputError(f"mel: it is for folders of sounds, {name} is none: leave it out")
    found = _read_ts_files(Path(name), reading) if kind == "series" else _read_numbers(name, kind, reading, how)
    parts, known, columns = found
    arranged = arrange_parts(parts, name, how)
    sets = make_sets(arranged.rows, name, arranged.preprocess, classes=classes, known=known, skip_bad=skip_bad)
    return sets._replace(columns=columns), arranged.note


def _describe_length(known: ArrayPreprocess) -> str:
    """A line on series that may not be as they were; none where all are."""
    length = known.length if isinstance(known, SeriesPreprocess) else 0
    return f"series: longer ones are cut to {length} steps, shorter ones filled with zeros, at the end" if length else ""


def _find_folder_kind(root: Path) -> Modality:
    suffixes = tuple(dict.fromkeys(suffix for found in SUFFIXES.values() for suffix in found))
    for path in list_first(root, suffixes):
        try:
            found = find_file_kind(path)
        except DataError:  # a bad file tells nothing: the next one may
            continue
        if found is not None:
            return found
    raise DataError(f"data: {root} has no file that can be read as a series or a volume ({', '.join(suffixes)})")


def _read_array_folder(
    root: Path, reading: Reading, how: ArrayReading, classes: Sequence[str], skip_bad: bool
) -> tuple[Parts, str]:
    kind = _find_folder_kind(root)
    preprocess = how.known if how.known is not None else describe_files(list_first(root, SUFFIXES[kind]), kind, how)

    def load(path: Path, own: tuple[str, ...]) -> LazyArrays:
        return load_arrays(path, preprocess, classes=own, skip_bad=skip_bad)

    return read_folder(root, reading, load, classes), _describe_length(preprocess)


def _read_ts_files(path: Path, reading: Reading) -> tuple[Mapping[str, RawPart], Sequence[str], str]:
    if any(reading):
        raise InputError(f"columns, group_by, split_by: {path} is a .ts file, without columns: leave them out")
    files = {part: read_ts(file) for part, file in find_ts_files(path).items()}
    known = next((file.classes for file in files.values() if file.classes), ())
    return {part: file.part for part, file in files.items()}, known, ""


def _read_numbers(
    name: str, kind: Format, reading: Reading, how: ArrayReading
) -> tuple[Mapping[str, RawPart], Sequence[str], str]:
    table = open_numbers(name, kind)
    features = how.known.names if isinstance(how.known, VectorPreprocess) else ()
    parts, columns = table.list_parts(reading.columns, reading.group_by, reading.split_by, features)
    known = () if kind == "numbers" else open_table(name, kind).class_names(columns)
    return parts, known, str(columns)


def open_numbers(name: str, kind: Format) -> NumberTable:
    """A table of numbers: a CSV file, or whatever :func:`~exitlens.data.formats.tables.open_table` opens."""
    return NumberTable(Path(name) if kind == "numbers" else open_table(name, kind))
