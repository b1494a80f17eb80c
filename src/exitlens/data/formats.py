"""Find the format of a source by its name and the names of its files, open it, and tell its versions apart."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from exitlens.data import files
from exitlens.data.lines import TABLES, NumberFile, TextFiles, TsFiles, peek_kinds
from exitlens.data.rows import (
    KEY,
    LABEL_NAMES,
    ROLES,
    SAMPLES,
    ColumnChoice,
    Source,
    find_columns,
    looks_like_pattern,
    parse_columns,
)
from exitlens.data.shards import find_shards, open_shards
from exitlens.data.splits import find_split_tables
from exitlens.data.tables import HUB, open_table
from exitlens.errors import DataError
from exitlens.modalities import IMAGE, SERIES, TEXT, Modality
from exitlens.modalities.series import SERIES_FILES, list_columns
from exitlens.modalities.volume import VOLUME_FILES

Format = Literal[
    "texts", "folder", "masks", "shards", "hub", "saved", "imagefolder", "parquet", "arrow", "numbers", "series", "arrays"
]  # numbers: a CSV file of series or vectors; series: .ts files; arrays: class folders of series or volumes
ARRAYS = tuple(dict.fromkeys((*SERIES_FILES, *VOLUME_FILES)))
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "shards",
    ".ts": "series",
    **dict.fromkeys((*TABLES, ".txt"), "texts"),
}


def find_format(name: str, columns: str = "", reserved: Sequence[str] = (), labelled: bool = True) -> Format | None:
    """Return the format of the source that a name means, if it is known; files of texts and tar files need not exist.

    A folder is, in this order: what ``datasets`` saved; images with masks of classes, unless ``columns`` of metadata are
    named; images with metadata; images in two subfolders or more; texts in ``train.csv`` or ``.jsonl``, beside other splits;
    ``.ts`` files; the first Parquet, Arrow or tar file below it; series or volumes in two subfolders or more; otherwise a
    folder of images. A CSV file holds numbers if ``columns`` say so, or its columns without the ``reserved`` ones do. If
    samples are not ``labelled``, a folder with an image in it is a folder of images: it may hold tables, too, such as
    predictions for these images.
    """
    if name.startswith(HUB):
        return "hub"
    path = Path(name)
    if not path.is_dir():
        suffix = path.suffix.lower()
        kind = _SUFFIXES.get(suffix)
        if suffix == ".csv" and path.is_file() and _holds_numbers(path, columns, reserved):
            return "numbers"
        return kind if path.is_file() or kind in ("texts", "shards") else None
    if any((path / file).is_file() for file in SAVED):
        return "saved"
    folders = files.list_folders(path)
    has_metadata = any(_names_files(folder / file) for folder in (path, *folders) for file in METADATA)
    needs_metadata = columns or (has_metadata and any(word and not looks_like_pattern(word) for word in reserved))
    if not labelled and not needs_metadata and _find_first(path, files.EXTENSIONS):
        return "folder"
    if files.holds_masks(path) and not (has_metadata and columns):
        return "masks"
    if has_metadata:
        return "imagefolder"
    if sum(_find_first(folder, files.EXTENSIONS) is not None for folder in folders) >= 2:
        return "folder"
    if find_split_tables(path, TABLES):
        return "texts"
    if any(file.suffix.lower() == ".ts" and not file.name.startswith(".") for file in path.iterdir()):
        return "series"
    table = _find_first(path, (".parquet", ".arrow", ".tar"))
    kind = None if table is None else _SUFFIXES[table.suffix.lower()]
    if kind not in (None, "parquet") or not _holds_arrays(folders):
        return kind or "folder"
    return "arrays"


def _find_first(root: Path, suffixes: tuple[str, ...]) -> Path | None:
    return next(files.iterate_files(root, suffixes), None)


def _holds_arrays(folders: Sequence[Path]) -> bool:
    """Return whether two or more folders hold series or volumes; Parquet files count only if they are one series each."""
    if sum(_find_first(folder, ARRAYS) is not None for folder in folders) < 2:
        return False
    for path in filter(None, (next(folder.rglob("*.parquet"), None) for folder in folders)):
        kinds = list_columns(path)
        names = {name.lower() for name in kinds}
        has_label = names & {*LABEL_NAMES} - ({"y"} if "x" in names else set())
        if not kinds or not all(kinds.values()) or has_label:  # not one series: columns of numbers
            return False
    return True


def _holds_numbers(path: Path, columns: str, reserved: Sequence[str]) -> bool:
    """Return whether a CSV file is a table of series or vectors, and not of texts."""
    named = parse_columns(columns, (*ROLES, KEY))
    if named.keys() & set(SAMPLES):
        return not {"image", "text"} & named.keys()
    taken, labels = [*reserved, *named.get(KEY, ())], named.get("label", ())
    try:
        kinds = peek_kinds(path)
    except DataError:  # read as texts, it tells what is wrong with it
        return False
    try:
        role = find_columns(kinds, f"label={'|'.join(labels)}" if labels else "", str(path), taken).role
        return role in ("series", "features")
    except DataError:  # numbers alone are numbers, even if no label is found
        return bool(kinds) and "string" not in {kind for name, kind in kinds.items() if name not in (*taken, *labels)}


def _names_files(path: Path) -> bool:
    """Return whether a metadata file exists and has a column for the image of each row."""
    if not path.is_file() or path.suffix == ".parquet":
        return path.is_file()
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            head = json.loads(file.readline()) if path.suffix == ".jsonl" else next(csv.reader(file), [])
        except (ValueError, csv.Error):
            return False
    return any(name == "file_name" or name.endswith("_file_name") for name in head)


def open_rows(name: str, kind: Format, task: str = "") -> Source:
    """Open a source of any format whose rows are samples; a folder of files has none."""
    if kind == "texts":
        return TextFiles(Path(name), task)
    if kind == "numbers":
        return NumberFile(Path(name))
    if kind == "series":
        return TsFiles(Path(name))
    return open_shards(name) if kind == "shards" else open_table(name, kind)


def find_samples(name: str, kind: Format, choice: ColumnChoice) -> Modality:
    """Return the kind of a source's samples; a table, a shard or the first file of a folder is opened for it."""
    if kind == "arrays":
        return files.find_folder_kind(Path(name))
    known: dict[Format, Modality] = {"texts": TEXT, "folder": IMAGE, "masks": IMAGE, "series": SERIES}
    return known[kind] if kind in known else SAMPLES[open_rows(name, kind).find_columns(choice).role]


def hash_source(name: str, kind: Format) -> str:
    """Return SHA-256 over the names and contents that decide the splits, without reading images."""
    path = Path(name)
    if kind == "texts" and path.is_dir():
        return files.hash_files(list(find_split_tables(path, TABLES).values()))
    if kind in ("texts", "numbers"):
        with files.name_failures(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if kind in ("folder", "masks", "arrays"):
        return files.hash_folder(path)
    if kind == "hub":
        return open_table(name, kind).hash()
    if kind == "shards":
        return files.hash_files(find_shards(name))
    if kind == "imagefolder":  # images are told by their names, as in other folders
        facts = files.hash_folder(path) + files.hash_files(files.list_files(path, METADATA))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]
    return files.hash_files(files.list_files(path))
