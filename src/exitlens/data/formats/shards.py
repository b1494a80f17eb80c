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
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np

from exitlens.data.checks import join_flags
from exitlens.data.formats.columns import Columns, Kind, find_columns
from exitlens.data.formats.groups import looks_like_pattern, match_groups
from exitlens.data.formats.labelled import Rows
from exitlens.data.formats.named_parts import name_split
from exitlens.data.formats.tars import Index, ShardImages, find_shards, index_shards, read_shard
from exitlens.errors import DataError, suggest
from exitlens.types import Preprocess

_PEEKED = 50  # files, and samples of each, that tell what there is


class Shards:
    """Tar files of one source; see :func:`open_shards`.

    Attributes:
        name: of the source.
        paths: of its tar files.
        kinds: what the first samples have: an image, and values by the members' extensions or the keys of their JSON.
    """

    def __init__(self, name: str, paths: tuple[Path, ...], stamp: tuple[object, ...]) -> None:
        self.name, self.paths, self._stamp = name, paths, stamp
        self._damage: list[str] = []  # seen in the first samples
        first = [sample for path in paths[:_PEEKED] for sample in islice(read_shard(path, self._damage), _PEEKED)]
        self.kinds: dict[str, Kind] = {"image": "image"} if any(sample.image for sample in first) else {}
        self.kinds |= dict.fromkeys((name for sample in first for name in sample.values), "string")

    def find_columns(self, given: str, reserved: Sequence[str] = ()) -> Columns:
        """What is image or text, and what label, see :func:`~exitlens.data.formats.columns.find_columns`."""
        if not self.kinds:
            self.index(frozenset(), skip_bad=False)  # says what is wrong with them
        caption: dict[str, Kind] = {"txt": "other"} if {"image", "txt"} <= self.kinds.keys() else {}
        try:
            return find_columns(self.kinds | caption, given, self.name, reserved)
        except DataError as error:
            raise DataError("; ".join([str(error), *self._damage[:1]])) from error

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
        columns = self.find_columns(given, [group_by, split_by])
        if split_by and split_by not in self.kinds:
            self.refuse("split_by", split_by)
        if group_by and group_by not in self.kinds and not looks_like_pattern(group_by):
            self.refuse("group_by", group_by)
        wanted = {columns.text, *columns.labels, group_by, split_by}
        index = self.index(frozenset(wanted & self.kinds.keys()), skip_bad)
        groups: Sequence[str | None] | None = index.values.get(group_by)
        if group_by and groups is None:
            groups = match_groups(group_by, index.keys)
        words = [""] * len(self.paths) if split_by else _read_parts(self.paths)
        return {word: self._list_part(word, words, index, columns, groups, split_by) for word in dict.fromkeys(words)}

    def index(self, wanted: frozenset[str], skip_bad: bool) -> Index:
        """Where the samples lie, with the ``wanted`` values; arguments and errors as of :meth:`list_rows`."""
        index = _index(self.paths, self._stamp, wanted)
        if index.bad and not (skip_bad and len(index.members)):
            raise DataError(f"data: {index.bad[0]}: mend it, or pass --skip-bad (skip_bad=True) to take what is whole")
        if not len(index.members):
            raise DataError(
                f"data: {self.name} has no samples: expected members such as key.jpg and key.cls in its tar files"
            )
        return index

    def refuse(self, argument: str, name: str) -> NoReturn:
        """Raises a :class:`DataError` for a name that no sample has."""
        known = ", ".join(self.kinds)
        raise DataError(f"{argument}: {self.name} has no {name!r}; it has {known}.{suggest(name, self.kinds)}")

    def _list_part(
        self,
        word: str,
        words: Sequence[str],
        index: Index,
        columns: Columns,
        groups: Sequence[str | None] | None,
        split_by: str,
    ) -> Rows:
        shards = [i for i, other in enumerate(words) if other == word]
        rows = np.isin(index.places[:, 0], shards).nonzero()[0].tolist()

        def pick(values: Sequence[str | None]) -> list[str | None]:
            return [values[i] for i in rows]

        def make_reader(preprocess: Preprocess) -> ShardImages:
            return ShardImages(self.paths, index.places[rows], [index.members[i] for i in rows], preprocess)

        def name(i: int) -> str:
            return f"{self.paths[index.places[rows[i], 0]]}/{index.members[rows[i]]}"

        flags = {label: pick(index.values[label]) for label in columns.labels}
        return Rows(
            name=name,
            labels=pick(index.values[columns.label]) if len(columns.labels) == 1 else join_flags(flags, name),
            images=None if columns.text else make_reader,
            texts=pick(index.values[columns.text]) if columns.text else None,
            groups=None if groups is None else pick(groups),
            splits=pick(index.values[split_by]) if split_by else None,
        )


@lru_cache(maxsize=2)
def _open(name: str, paths: tuple[Path, ...], stamp: tuple[object, ...]) -> Shards:
    return Shards(name, paths, stamp)


@lru_cache(maxsize=2)
def _index(paths: tuple[Path, ...], stamp: tuple[object, ...], wanted: frozenset[str]) -> Index:
    return index_shards(paths, wanted)


def open_shards(name: str) -> Shards:
    """Opens the tar files of a source and looks at the first samples; what was opened last is kept until a file changes.

    Args:
        name: see :func:`find_shards`.

    Raises:
        DataError: no files, or files that cannot be read.
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
