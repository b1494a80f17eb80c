"""WebDataset tar shards: ``key.jpg``, ``key.cls``, ``key.json``, ... of one sample stand beside each other in a tar file.

The libraries ``webdataset`` and ``datasets`` stream such files: they know no number of samples, shuffle within a buffer,
and cannot resume an order. Splits, shuffling by a seed and exact resume need all three, so one pass over the headers notes
where each image lies and reads the labels; any image is then one read at an offset. Shards must not be compressed.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exitlens.data.files import EXTENSIONS, list_files, stamp_files
from exitlens.data.readers import EncodedImages, PackedStrings
from exitlens.data.rows import SEPARATOR, ColumnChoice, Columns, Kind, Role, Rows, Source, label_rows
from exitlens.data.splits import name_split
from exitlens.errors import DataError, InputError
from exitlens.modalities.arrays import MOST_BYTES
from exitlens.types.preprocessing import Preprocess

_MOST_VALUE_BYTES = 1_000_000  # limit for a label, text or JSON member
_PEEKED = 50  # files, and samples of each, that tell what there is


def find_shards(name: str) -> list[Path]:
    """Return the tar files that a name means, sorted: a file, those below a folder, or those of a pattern.

    A pattern has the shell's ``*``, ``?`` and ``[...]``, or ``{000..012}`` and ``{a,b}``, whose files must all exist.
    """
    path = Path(name)
    if path.is_dir():
        return list_files(path, (".tar",))
    if path.suffix.lower() != ".tar":
        return []
    if path.is_file():
        return [path]
    paths: set[Path] = set()
    for pattern in expand_braces(name):
        paths |= set(map(Path, glob.glob(pattern) if glob.has_magic(pattern) else [pattern]))  # noqa: PTH207
    return sorted(paths)


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..012}`` and ``{a,b}`` stand for."""
    pieces: list[list[str]] = []
    for text, braced in re.findall(r"([^{}]+)|\{([^{}]*)\}", pattern):
        if text:
            pieces.append([text])
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", braced):
            pieces.append([f"{i:0{len(match[1])}}" for i in range(int(match[1]), int(match[2]) + 1)])
        else:
            pieces.append(braced.split(","))
    return ["".join(words) for words in itertools.product(*pieces)]


class Sample(NamedTuple):
    """One sample: key, its values by name, and its image: the name in the tar file, and where it lies."""

    key: str
    values: dict[str, str]
    image: str = ""
    offset: int = 0
    size: int = -1


class Index(NamedTuple):
    """Where N samples lie; of samples with one key in one file, only the first is kept."""

    members: PackedStrings  # names of the images, or keys of samples without one
    places: Any  # (N,3) int64: file, offset and bytes of every image; -1 bytes if there is none
    values: Mapping[str, Sequence[str | None]]  # by the members' extensions or JSON keys, of every sample
    bad: tuple[str, ...]  # what is wrong with files


@lru_cache(maxsize=2)
def index_shards(paths: tuple[Path, ...], wanted: frozenset[str], stamp: tuple[object, ...] = ()) -> Index:
    """Read tar files once, for the images' places and the ``wanted`` values; another ``stamp`` says that a file changed."""
    members, places, bad = list[str](), array("q"), list[str]()
    values: dict[str, list[str | None]] = {name: [] for name in wanted}
    seen: dict[str, str] = {}  # equal words are kept once
    for shard, path in enumerate(paths):
        for sample in read_shard(path, bad):
            members.append(sample.image or sample.key)
            places.extend((shard, sample.offset, sample.size))
            for name, column in values.items():
                value = sample.values.get(name)
                column.append(None if value is None else seen.setdefault(value, value))
    place_table = np.array(places, dtype=np.int64).reshape(-1, 3)
    hashes = [hash((shard, member)) for shard, member in zip(place_table[:, 0].tolist(), members, strict=True)]
    first = np.sort(np.unique(np.array(hashes, dtype=np.int64), return_index=True)[1])  # where each stands first
    if len(first) < len(members):
        again = min(set(range(len(members))) - set(first.tolist()))
        bad.append(f"{paths[place_table[again, 0]]} has {members[again]!r} twice, as of {len(members) - len(first)} in all")
        members, place_table = [members[i] for i in first], place_table[first]
        values = {name: [column[i] for i in first] for name, column in values.items()}
    return Index(PackedStrings(members), place_table, values, tuple(bad))


def read_shard(path: Path, bad: list[str]) -> Iterator[Sample]:
    """Yield the samples of one tar file; ``bad`` gets what is wrong with it."""
    sample = Sample("", {})
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is stored with holes")
                if not member.isreg() or "/." in f"/{member.name.removeprefix('./')}":
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"unexpected end of data in {member.name}")
                name, extension = _split_name(member.name)
                if name != sample.key:
                    if sample.values or sample.image:
                        yield sample
                    sample = Sample(name, {})
                if f".{extension.rpartition('.')[2]}" not in EXTENSIONS:
                    sample.values.update(_read_values(archive, member, extension))
                elif not sample.image or ("." in _split_name(sample.image)[1] and "." not in extension):
                    # key.jpg comes before key.mask.png
                    image = member.name.removeprefix("./")
                    sample = sample._replace(image=image, offset=member.offset_data, size=member.size)
            if size < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without the mark for its end")
    except (tarfile.TarError, OSError, EOFError, ValueError, LookupError) as error:  # tarfile's, for hostile headers
        reason = f"after sample {sample.key!r} ({type(error).__name__}: {error})"
        bad.append(f"{path} is damaged, compressed or not a tar file, {reason}")
        return
    if sample.values or sample.image:
        yield sample


def _split_name(name: str) -> tuple[str, str]:
    """Return key and extension: what comes before and after the first point of the file's name."""
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
        pairs: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    values = dict[str, str]()
    for key, value in pairs.items() if isinstance(pairs, dict) else ():
        if isinstance(value, str | int):
            values[str(key)] = str(value)
        elif isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            values[str(key)] = SEPARATOR.join(map(str, value))
    return values


class Shards(Source):
    """Tar files; ``kinds`` are an image, and the members' extensions or JSON keys of the first samples."""

    def __init__(self, name: str, paths: tuple[Path, ...], stamp: tuple[object, ...]) -> None:
        self._paths, self._stamp = paths, stamp
        self._damage: list[str] = []  # seen in the first samples
        first = [sample for path in paths[:_PEEKED] for sample in islice(read_shard(path, self._damage), _PEEKED)]
        kinds: dict[str, Kind] = {"image": "image"} if any(sample.image for sample in first) else {}
        super().__init__(name, kinds | dict.fromkeys((name for sample in first for name in sample.values), "string"))

    def find_columns(self, choice: ColumnChoice, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Choose what is image or text, and what label; a damaged file is part of the error if that is unclear."""
        if not self.kinds:
            self._index(frozenset(), skip_bad=False)  # says what is wrong with them
        try:
            columns = super().find_columns(choice, wanted, features)
        except DataError as error:
            raise DataError("; ".join([str(error), *self._damage[:1]])) from error
        if columns.role not in ("image", "text"):
            fix = "give image=NAME or text=NAME"
            raise InputError(f"columns: {self.name} holds shards of images or texts, got {columns.role}=NAME. Fix: {fix}")
        return columns

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Return labels, groups and contents of every part; shards are of a part if all their names say a split."""
        wanted = columns.words if columns.role == "image" else (*columns.inputs, *columns.words)
        index = self._index(frozenset(wanted), skip_bad)
        words = [(*re.split(r"[-_.]", path.stem), path.parent.name) for path in self._paths]
        parts = [next(filter(name_split, candidates), "") for candidates in words]
        if columns.split or joined or not all(parts):
            parts = [""] * len(self._paths)
        return {part: self._list_part(part, parts, index, columns) for part in dict.fromkeys(parts)}

    def _index(self, wanted: frozenset[str], skip_bad: bool) -> Index:
        index = index_shards(self._paths, wanted, self._stamp)
        if index.bad and not (skip_bad and len(index.members)):
            fix = "repair it, or pass --skip-bad (skip_bad=True) to take what is whole"
            raise DataError(f"data: {index.bad[0]}. Fix: {fix}")
        if not len(index.members):
            raise DataError(f"data: {self.name} has no samples: expected members such as key.jpg and key.cls in tar files")
        return index

    def _list_part(self, part: str, parts: Sequence[str], index: Index, columns: Columns) -> Rows:
        shards = [i for i, word in enumerate(parts) if word == part]
        rows = np.isin(index.places[:, 0], shards).nonzero()[0].tolist()
        words = {name: [values[i] for i in rows] for name, values in index.values.items()}
        places, members = index.places[rows], PackedStrings(index.members[i] for i in rows)
        names = PackedStrings(f"{self._paths[place]}/{member}" for place, member in zip(places[:, 0], members, strict=True))
        listed = label_rows(names, columns, words, lambda: [_split_name(member)[0] for member in members])
        if columns.role == "image":
            return listed._replace(images=partial(ShardImages, self._paths, places, names), damage=index.bad)
        return listed._replace(texts=words[columns.inputs[0]], damage=index.bad)


_open = lru_cache(maxsize=2)(Shards)


def open_shards(name: str) -> Shards:
    """Open the tar files of a source; what was opened last is kept until a file changes."""
    paths = tuple(find_shards(name))
    if not paths:
        raise DataError(f"data: no tar files for {name}")
    return _open(name, paths, stamp_files(paths))


class ShardImages(EncodedImages):
    """Images in tar files: ``places (N,3)`` ``int64`` are file, offset and bytes of every image."""

    def __init__(self, paths: Sequence[Path], places: Any, names: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(names, preprocess)
        self._paths, self._places = tuple(paths), places

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes at the image's place."""
        shard, offset, size = (int(value) for value in self._places[index])
        if size < 0:
            raise DataError(f"{self.name(index)}: has no image")
        if size > MOST_BYTES:
            raise DataError(f"{self.name(index)}: it has more than {MOST_BYTES:,} bytes: no image is that large")
        try:
            with self._paths[shard].open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.name(index)}: cannot be read ({type(error).__name__}: {error.strerror})") from error
        if len(content) < size:
            raise DataError(f"{self.name(index)}: the tar file ends before its image does")
        return content
