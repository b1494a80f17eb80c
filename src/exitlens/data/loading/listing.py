"""Listing folders: one pass, without asking for every file's properties."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from exitlens.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def list_names(folder: Path, suffixes: tuple[str, ...] = EXTENSIONS, kind: str = "image") -> list[str]:
    """Names of files at any depth below ``folder``, relative to it, sorted part by part; hidden ones are left out.

    Args:
        folder: where to look.
        suffixes: of the files, by default of images.
        kind: name of one, for the message.

    Raises:
        DataError: if the folder cannot be listed or holds no such file.
    """
    try:
        found = [name for name in _walk(str(folder), "", hidden=False) if name.lower().endswith(suffixes)]
    except OSError as error:
        raise DataError(f"data: {folder} cannot be listed ({type(error).__name__}: {error.strerror})") from error
    if not found:
        raise DataError(f"data: no {kind} files below {folder} (looked for {', '.join(suffixes)})")
    return found


def list_images(folder: Path) -> list[Path]:
    """Image files at any depth below ``folder``, sorted; or the one file that ``folder`` is.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"data: no file or folder {folder}: give a folder of images")
    return [folder / name for name in list_names(folder)]


def hash_folder(root: Path) -> str:
    """SHA-256 over the sorted relative names of the files below ``root``."""
    names = sorted(_walk(str(root), "", hidden=True))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _walk(folder: str, prefix: str, hidden: bool) -> Iterator[str]:
    """Relative names of all files, in order; links to folders are not followed."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if hidden or entry.name[0] != "."), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", hidden)
        elif entry.is_file():
            yield prefix + entry.name
