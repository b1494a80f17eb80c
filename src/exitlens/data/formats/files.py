"""Files of a source: found, and told from others without reading all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from exitlens.errors import DataError

_ENDS = 65536  # bytes at both ends of a file


def list_files(root: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The files at any depth below ``root`` (or the one that it is) with one of these suffixes (all, by default), sorted.

    Hidden files and folders, and caches of ``datasets``, are left out.
    """
    if root.is_file():
        return [root]
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        fitting = (name for name in sorted(names) if not suffixes or name.lower().endswith(suffixes))
        found += [Path(folder, name) for name in fitting if not name.startswith((".", "cache-"))]
    return found


def stamp_files(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file: equal as long as nobody writes to them."""
    try:
        return tuple((str(path), (at := path.stat()).st_size, at.st_mtime_ns) for path in list_files(root))
    except OSError as error:
        raise DataError(f"data: {root} cannot be listed ({type(error).__name__}: {error.strerror})") from error


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over every file's name, its size, and the 64 KiB at both of its ends.

    That tells files with other rows (Parquet has all its offsets at the end), and takes milliseconds for a terabyte.

    Raises:
        DataError: a file that cannot be read.
    """
    found = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                ends = file.read(_ENDS)
                if size > _ENDS:
                    file.seek(max(_ENDS, size - _ENDS))
                    ends += file.read()
        except OSError as error:
            raise DataError(f"data: {path} cannot be read ({type(error).__name__}: {error.strerror})") from error
        found.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape") + ends)
    return found.hexdigest()[:16]
