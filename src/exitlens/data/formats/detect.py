"""Which format a source has, from its name and the names of its files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from exitlens.data.formats.columns import KEY, LABEL_NAMES, ROLES, SAMPLES, find_columns, parse_columns
from exitlens.data.formats.groups import looks_like_pattern
from exitlens.data.formats.named_parts import find_split_tables
from exitlens.data.loading.listing import EXTENSIONS
from exitlens.data.rows import TABLES, peek_kinds
from exitlens.errors import DataError
from exitlens.modalities.series import SERIES_FILES, list_columns
from exitlens.modalities.volume import VOLUME_FILES

Format = Literal[
    "texts", "folder", "shards", "hub", "saved", "imagefolder", "parquet", "arrow", "numbers", "series", "arrays"
]  # numbers: a CSV file of series or vectors; series: .ts files; arrays: class folders of series or volumes
HUB = "hf:"
ARRAYS = tuple(dict.fromkeys((*SERIES_FILES, *VOLUME_FILES)))
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "shards",
    ".ts": "series",
    **dict.fromkeys(TABLES, "texts"),
}


def find_format(name: str, columns: str = "", reserved: Sequence[str] = ()) -> Format | None:
    """The format of the source that a name means, if it is known; files of texts and tar files need not exist.

    Of a folder: what ``datasets`` saved; images with metadata; images in two subfolders or more; texts in ``train.csv``
    or ``.jsonl``, beside other splits; ``.ts`` files; the first Parquet, Arrow or tar file below it; series or volumes
    in two subfolders or more; and otherwise a folder of images. A CSV file holds numbers where ``columns`` (of
    ``--columns``) say so, or its columns without the ``reserved`` ones do.
    """
    if name.startswith(HUB):
        return "hub"
    path = Path(name)
    if not path.is_dir():
        found = _SUFFIXES.get(path.suffix.lower())
        if found == "texts" and path.is_file() and path.suffix.lower() == ".csv" and _holds_numbers(path, columns, reserved):
            return "numbers"
        return found if path.is_file() or found in ("texts", "shards") else None
    if any((path / file).is_file() for file in SAVED):
        return "saved"
    folders = list_folders(path)
    if any(_names_files(folder / file) for folder in (path, *folders) for file in METADATA):
        return "imagefolder"
    if sum(_first(folder, EXTENSIONS) != "" for folder in folders) >= 2:
        return "folder"
    if find_split_tables(path, TABLES):
        return "texts"
    if any(one.suffix.lower() == ".ts" and not one.name.startswith(".") for one in path.iterdir()):
        return "series"
    table = _SUFFIXES.get(_first(path, (".parquet", ".arrow", ".tar")))
    if table not in (None, "parquet") or not _holds_arrays(folders):
        return table or "folder"
    return "arrays"


def _holds_arrays(folders: Sequence[Path]) -> bool:
    """Whether two folders or more have series or volumes in them; of Parquet, only files that are one series each."""
    first = [_first(folder, ARRAYS) for folder in folders]
    if sum(suffix != "" for suffix in first) < 2:
        return False
    files = [next(folder.rglob("*.parquet"), None) for folder in folders]
    return all(file is None or _is_one_series(file) for file in files)


def _is_one_series(path: Path) -> bool:
    """Whether a Parquet file can be one series: columns of numbers, none of which is called as a label is."""
    kinds = list_columns(path)
    names = {name.lower() for name in kinds}
    return bool(kinds) and all(kinds.values()) and not names & {*LABEL_NAMES} - ({"y"} if "x" in names else set())


def _holds_numbers(path: Path, columns: str, reserved: Sequence[str]) -> bool:
    """Whether a CSV file is a table of series or vectors, and not of texts."""
    words = parse_columns(columns, (*ROLES, KEY))
    if words.keys() & set(SAMPLES):
        return not {"image", "text"} & words.keys()
    key = words.pop(KEY, "")
    try:
        kinds = peek_kinds(path)
    except DataError:  # as texts, it is told what is wrong with it
        return False
    try:
        chosen = find_columns(kinds, ",".join(map("=".join, words.items())), str(path), [*reserved, key])
    except DataError:  # numbers alone are numbers, even if no label is found
        return bool(kinds) and "string" not in {
            kind for name, kind in kinds.items() if name not in (*reserved, key, words.get("label"))
        }
    return bool(chosen.series or chosen.features)


def find_unlabelled_format(name: str, columns: str, group_by: str) -> Format | None:
    """As :func:`find_format`, for data without labels: a folder with an image in it is a folder of images.

    It may hold tables, too, such as predictions of these images. ``columns`` are of a table; ``group_by`` a column of the
    metadata, or a regular expression.
    """
    found = find_format(name, columns, [group_by])
    if found in ("saved", "hub") or columns or not Path(name).is_dir():
        return found
    if found == "imagefolder" and group_by and not looks_like_pattern(group_by):
        return found
    return "folder" if _first(Path(name), EXTENSIONS) else found


def list_folders(path: Path) -> list[Path]:
    """The subfolders that are not hidden, sorted."""
    return sorted(found for found in path.iterdir() if found.is_dir() and not found.name.startswith("."))


def _names_files(path: Path) -> bool:
    """Whether a metadata file is there and has the column that says which image a row is about."""
    if not path.is_file() or path.suffix == ".parquet":
        return path.is_file()
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            head = json.loads(file.readline()) if path.suffix == ".jsonl" else next(csv.reader(file), [])
        except (ValueError, csv.Error):
            return False
    return any(name == "file_name" or name.endswith("_file_name") for name in head)


def _first(root: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix of the first file below ``root`` that has one of these; hidden files and folders are left out."""
    for _, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = next((one for one in suffixes if name.lower().endswith(one)), "")
            if suffix and not name.startswith("."):
                return suffix
    return ""
