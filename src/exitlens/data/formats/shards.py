"""WebDataset tar shards: ``key.jpg``, ``key.cls``, ``key.json``, ... of one sample stand beside each other in a tar file.

The libraries ``webdataset`` and ``datasets`` stream such files: they know no number of samples, shuffle within a buffer
only, and cannot go on with the same order later. We need all three (splits, shuffling by a seed, exact resume), so one pass
over the headers notes where each image lies (labels are read on the way, images are skipped), and any image is then one read
at an offset. Shards must not be compressed.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from exitlens.data.formats.columns import Columns, Kind, find_columns
from exitlens.data.formats.files import list_files
from exitlens.data.formats.labelled import Rows
from exitlens.data.grouping import looks_like_pattern, match_groups
from exitlens.data.loading.listing import EXTENSIONS
from exitlens.data.loading.names import PackedNames
from exitlens.data.loading.readers import MAX_BYTES, EncodedImages
from exitlens.data.splits import name_split
from exitlens.errors import DataError, suggest
from exitlens.types import Preprocess

_MOST_VALUE_BYTES = 1_000_000  # of a label, text or JSON
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def find_shards(name: str) -> list[Path]:
    """The tar files that a source's name means: one file, those below a folder, or those of a pattern; sorted.

    Patterns have the shell's ``*``, ``?`` and ``[...]``, and ``{000..012}`` or ``{a,b}``, which must all be there.
    """
    path = Path(name)
    if path.is_dir():
        return list_files(path, (".tar",))
    if path.suffix.lower() != ".tar":
        return []
    if path.is_file():
        return [path]
    found: set[Path] = set()
    for pattern in expand_braces(name):
        found |= set(map(Path, glob.glob(pattern) if glob.has_magic(pattern) else [pattern]))  # noqa: PTH207
    return sorted(found)


def expand_braces(pattern: str) -> list[str]:
    """The names that ``{000..012}`` and ``{a,b}`` stand for."""
    pieces: list[list[str]] = []
    for text, braced in re.findall(r"([^{}]+)|\{([^{}]*)\}", pattern):
        if text:
            pieces.append([text])
        elif match := _RANGE.match(braced):
            first, last = match[1], match[2]
            pieces.append([f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)])
        else:
            pieces.append(braced.split(","))
    return ["".join(words) for words in itertools.product(*pieces)]


class _Sample(NamedTuple):
    """One sample: key, its values by name, and where its image lies."""

    key: str
    values: dict[str, str]
    image: tuple[int, int, str] | None  # offset, bytes, extension


class Shards:
    """An index of tar files; see :func:`open_shards`.

    Attributes:
        name: of the source.
        kinds: what the samples have: an image, and values by the members' extensions or the keys of their JSON.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self._bad = name, list[str]()
        self.kinds: dict[str, Kind] = {}
        self._values: dict[str, list[str | None]] = {}
        self._paths = tuple(paths)
        keys: list[str] = []
        places: list[tuple[int, int, int]] = []  # shard, offset, bytes
        for shard, path in enumerate(paths):
            for sample in _read_shard(path, self._bad):
                self._add_values(sample, len(keys))
                keys.append(sample.key)
                places.append((shard, *(sample.image or (0, -1, ""))[:2]))
        if not keys:
            self._check_bad()
            raise DataError(f"data: {name} has no samples: expected members such as key.jpg and key.cls in its tar files")
        self._keys, self._places = PackedNames(keys), np.array(places, dtype=np.int64)
        for values in self._values.values():
            values += [None] * (len(keys) - len(values))

    def _check_bad(self) -> None:
        if self._bad:
            raise DataError(f"data: {self._bad[0]}: mend it, or pass --skip-bad (skip_bad=True) to take what is whole")

    def _add_values(self, sample: _Sample, row: int) -> None:
        if sample.image is not None:
            self.kinds["image"] = "image"
        for name, value in sample.values.items():
            found = self._values.setdefault(name, [])
            found += [None] * (row - len(found))
            found.append(value)
            self.kinds.setdefault(name, "string")

    def find_columns(self, given: str, reserved: Sequence[str] = ()) -> Columns:
        """What is image or text, and what label, see :func:`~exitlens.data.formats.columns.find_columns`."""
        caption: dict[str, Kind] = {"txt": "other"} if {"image", "txt"} <= self.kinds.keys() else {}
        return find_columns(self.kinds | caption, given, self.name, reserved)

    def list_rows(self, given: str, group_by: str = "", split_by: str = "", *, skip_bad: bool = False) -> dict[str, Rows]:
        """Labels, groups and contents of every part; the shards' names say the part where all begin or end with a split's.

        Args:
            given: of ``--columns``: members' extensions or JSON keys.
            group_by: a JSON key or extension, or a regular expression on the samples' keys.
            split_by: a JSON key or extension.
            skip_bad: of a damaged shard, take what stands before the damage, instead of stopping.

        Raises:
            DataError: names that no sample has, or a damaged shard.
        """
        if not skip_bad:
            self._check_bad()
        columns = self.find_columns(given, [group_by, split_by])
        groups: Sequence[str | None] | None = None
        if group_by in self._values:
            groups = self._values[group_by]
        elif group_by:
            groups = self._match(group_by)
        if split_by and split_by not in self._values:
            self._refuse("split_by", split_by)
        words = [""] * len(self._paths) if split_by else _read_parts(self._paths)
        return {word: self._list_part(word, words, columns, groups, split_by) for word in dict.fromkeys(words)}

    def _match(self, group_by: str) -> list[str]:
        if not looks_like_pattern(group_by):
            self._refuse("group_by", group_by)
        return match_groups(group_by, self._keys)

    def _refuse(self, argument: str, name: str) -> NoReturn:
        known = ", ".join(self._values)
        raise DataError(f"{argument}: {self.name} has no {name!r}; it has {known}.{suggest(name, self._values)}")

    def _list_part(
        self, word: str, words: Sequence[str], columns: Columns, groups: Sequence[str | None] | None, split_by: str
    ) -> Rows:
        shards = [i for i, other in enumerate(words) if other == word]
        rows = np.isin(self._places[:, 0], shards).nonzero()[0].tolist()

        def pick(values: Sequence[str | None]) -> list[str | None]:
            return [values[i] for i in rows]

        def make_reader(preprocess: Preprocess) -> ShardImages:
            return ShardImages(self._paths, self._places[rows], [self._keys[i] for i in rows], preprocess)

        return Rows(
            name=lambda i: f"{self._paths[self._places[rows[i], 0]]}: {self._keys[rows[i]]}",
            labels=pick(self._values[columns.label]),
            images=None if columns.text else make_reader,
            texts=pick(self._values[columns.text]) if columns.text else None,
            groups=None if groups is None else pick(groups),
            splits=pick(self._values[split_by]) if split_by else None,
        )


@lru_cache(maxsize=2)
def _open(name: str, paths: tuple[Path, ...], stamp: tuple[object, ...]) -> Shards:
    return Shards(name, paths)


def open_shards(name: str) -> Shards:
    """Indexes the tar files of a source; the last index is kept until a file changes.

    Args:
        name: see :func:`find_shards`.

    Raises:
        DataError: no files, or no samples in them.
    """
    paths = tuple(find_shards(name))
    if not paths:
        raise DataError(f"data: no tar files for {name}")
    stamp = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"data: {path} cannot be read ({type(error).__name__}: {error.strerror})") from error
        stamp.append((found.st_size, found.st_mtime_ns))
    return _open(name, paths, tuple(stamp))


def _read_parts(paths: Sequence[Path]) -> list[str]:
    """The split of each shard, as its name or folder says; no word for all where some say none."""
    found = []
    for path in paths:
        words = [*re.split(r"[-_.]", path.stem), path.parent.name]
        found.append(next((word for word in words if name_split(word)), ""))
    return found if all(found) else [""] * len(paths)


def _read_shard(path: Path, bad: list[str]) -> Iterator[_Sample]:
    """Samples of one tar file; ``bad`` gets what is wrong with it."""
    key, values, image = "", dict[str, str](), None
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not member.isreg() or "/." in f"/{member.name}":
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"unexpected end of data in {member.name}")
                name, extension = _split_name(member.name)
                if name != key:
                    if values or image:
                        yield _Sample(key, values, image)
                    key, values, image = name, {}, None
                if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
                    if image is None:
                        image = (member.offset_data, member.size, extension)
                else:
                    values |= _read_values(archive, member, extension)
    except (tarfile.TarError, OSError, EOFError) as error:
        bad.append(f"{path} is damaged, compressed or no tar file, after sample {key!r} ({type(error).__name__}: {error})")
        return
    if values or image:
        yield _Sample(key, values, image)


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension: what stands before and after the first point of the file's name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_values(archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> dict[str, str]:
    if member.size > _MOST_VALUE_BYTES or (file := archive.extractfile(member)) is None:
        return {}
    text = file.read().decode("utf-8", "replace").strip()
    if extension != "json":
        return {extension: text}
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(key): str(value) for key, value in pairs if isinstance(value, str | int)}


class ShardImages(EncodedImages):
    """Images in tar files.

    Args:
        paths: the files.
        places: ``(N,3)`` ``int64``: file, offset and bytes of every image.
        keys: N names.
        preprocess: see :class:`EncodedImages`.
    """

    def __init__(self, paths: Sequence[Path], places: Any, keys: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(preprocess)
        self._paths, self._places, self._keys = tuple(paths), places, PackedNames(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """The tar file and the sample's key."""
        return f"{self._paths[self._places[index, 0]]}: {self._keys[index]}"

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`EncodedImages.read_bytes`."""
        shard, offset, size = (int(value) for value in self._places[index])
        if size < 0:
            raise DataError(f"{self.name(index)}: has no image")
        if size > MAX_BYTES:
            raise DataError(f"{self.name(index)}: it has more than {MAX_BYTES:,} bytes: no image is that large")
        try:
            with self._paths[shard].open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read ({type(error).__name__}: {error.strerror})") from error
        if len(content) < size:
            raise DataError(f"{self.name(index)}: the tar file ends before its image does")
        return content
