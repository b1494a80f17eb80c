"""WebDataset tar shards: ``key.jpg``, ``key.cls``, ``key.json``, ... of one sample stand beside each other in a tar file.

The libraries ``webdataset`` and ``datasets`` stream such files: they know no number of samples, shuffle within a buffer
only, and cannot go on with the same order later. We need all three (splits, shuffling by a seed, exact resume), so one pass
over the headers notes where each image lies (labels are read on the way, images are skipped), and any image is then one read
at an offset. Shards must not be compressed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np

from exitlens.data.formats.columns import Columns, Kind, find_columns
from exitlens.data.formats.groups import looks_like_pattern, match_groups
from exitlens.data.formats.labelled import Rows
from exitlens.data.formats.named_parts import name_split
from exitlens.data.formats.tars import Sample, ShardImages, find_shards, read_shard
from exitlens.data.loading.names import PackedNames
from exitlens.errors import DataError, suggest
from exitlens.types import Preprocess


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
            for sample in read_shard(path, self._bad):
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

    def _add_values(self, sample: Sample, row: int) -> None:
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
