"""Which format a source has, from its name and the names of its files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Literal

from exitlens.data.formats.groups import looks_like_pattern
from exitlens.data.loading.listing import EXTENSIONS
from exitlens.data.rows import TABLES

Format = Literal["texts", "folder", "shards", "hub", "saved", "imagefolder", "parquet", "arrow"]
HUB = "hf:"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "shards",
    **dict.fromkeys(TABLES, "texts"),
}


def find_format(name: str) -> Format | None:
    """The format of the source that a name means, if it is known; files of texts and tar files need not exist.

    Of a folder: what ``datasets`` saved; images with metadata; images in two subfolders or more; the first Parquet, Arrow or
    tar file below it; and otherwise a folder of images.
    """
    if name.startswith(HUB):
        return "hub"
    path = Path(name)
    if not path.is_dir():
        found = _SUFFIXES.get(path.suffix.lower())
        return found if path.is_file() or found in ("texts", "shards") else None
    if any((path / file).is_file() for file in SAVED):
        return "saved"
    folders = list_folders(path)
    if any(_names_files(folder / file) for folder in (path, *folders) for file in METADATA):
        return "imagefolder"
    if sum(_first(folder, EXTENSIONS) != "" for folder in folders) >= 2:
        return "folder"
    return _SUFFIXES.get(_first(path, (".parquet", ".arrow", ".tar")), "folder")


def find_unlabelled_format(name: str, columns: str, group_by: str) -> Format | None:
    """As :func:`find_format`, for data without labels: a folder with an image in it is a folder of images.

    It may hold tables, too, such as predictions of these images. ``columns`` are of a table; ``group_by`` a column of the
    metadata, or a regular expression.
    """
    found = find_format(name)
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
            _, point, suffix = name.lower().rpartition(".")
            if point + suffix in suffixes and not name.startswith("."):
                return point + suffix
    return ""
