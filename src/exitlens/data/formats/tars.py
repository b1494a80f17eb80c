"""Tar files: found by patterns, gone through once, and read at any place."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exitlens.data.checks import SEPARATOR
from exitlens.data.formats.files import list_files
from exitlens.data.loading.listing import EXTENSIONS
from exitlens.data.loading.packed import PackedStrings, pack_strings
from exitlens.data.loading.readers import MAX_BYTES, EncodedImages
from exitlens.errors import DataError
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


class Place(NamedTuple):
    """Where an image lies in a tar file."""

    offset: int
    size: int
    extension: str
    member: str


class Sample(NamedTuple):
    """One sample: key, its values by name, and where its image lies."""

    key: str
    values: dict[str, str]
    image: Place | None


class Index(NamedTuple):
    """Where N samples lie.

    Attributes:
        members: N names, of the image; of a sample without image its key.
        places: ``(N,3)`` ``int64``: file, offset and bytes of every image; -1 bytes where there is none.
        values: by the members' extensions or JSON keys, of every sample.
        bad: what is wrong with files. Of samples with one key in one file, only the first is kept.
    """

    members: PackedStrings
    places: Any
    values: Mapping[str, Sequence[str | None]]
    bad: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The keys of the samples, anew at each call."""
        return [_split_name(member)[0] for member in self.members]


def index_shards(paths: Sequence[Path], wanted: Collection[str]) -> Index:
    """Goes through tar files once, for the images' places and the ``wanted`` values."""
    members: list[str] = []
    places = array("q")
    values: dict[str, list[str | None]] = {name: [] for name in wanted}
    seen: dict[str, str] = {}  # equal words are kept once
    bad: list[str] = []
    for shard, path in enumerate(paths):
        for sample in read_shard(path, bad):
            members.append(sample.image.member if sample.image else sample.key)
            places.extend((shard, *(sample.image or (0, -1))[:2]))
            for name, found in values.items():
                value = sample.values.get(name)
                found.append(None if value is None else seen.setdefault(value, value))
    found_places = np.array(places, dtype=np.int64).reshape(-1, 3)
    first = _find_first([hash((place, member)) for place, member in zip(found_places[:, 0].tolist(), members, strict=True)])
    if len(first) < len(members):
        again = min(set(range(len(members))) - set(first.tolist()))
        bad.append(f"{paths[found_places[again, 0]]} has {members[again]!r} twice, as of {len(members) - len(first)} in all")
        members, found_places = [members[i] for i in first], found_places[first]
        values = {name: [found[i] for i in first] for name, found in values.items()}
    return Index(PackedStrings(members), found_places, values, tuple(bad))


def _find_first(hashes: Sequence[int]) -> Any:
    """Where each of them stands for the first time, ascending: ``(n,)`` ``int64``."""
    return np.sort(np.unique(np.array(hashes, dtype=np.int64), return_index=True)[1])


def read_shard(path: Path, bad: list[str]) -> Iterator[Sample]:
    """Samples of one tar file; ``bad`` gets what is wrong with it."""
    key, values, image = "", dict[str, str](), None
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
                if name != key:
                    if values or image:
                        yield Sample(key, values, image)
                    key, values, image = name, {}, None
                if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
                    if image is None or ("." in image.extension and "." not in extension):  # key.jpg before key.mask.png
                        image = Place(member.offset_data, member.size, extension, member.name.removeprefix("./"))
                else:
                    values |= _read_values(archive, member, extension)
            if size < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without the mark for its end")
    except (tarfile.TarError, OSError, EOFError, ValueError, LookupError) as error:  # tarfile's, for hostile headers
        bad.append(f"{path} is damaged, compressed or no tar file, after sample {key!r} ({type(error).__name__}: {error})")
        return
    if values or image:
        yield Sample(key, values, image)


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
    values = {str(key): str(value) for key, value in pairs if isinstance(value, str | int)}
    lists = {str(key): value for key, value in pairs if isinstance(value, list)}
    plain = {key: value for key, value in lists.items() if all(isinstance(one, str | int) for one in value)}
    return values | {key: SEPARATOR.join(map(str, value)) for key, value in plain.items()}


class ShardImages(EncodedImages):
    """Images in tar files.

    Args:
        paths: the files.
        places: ``(N,3)`` ``int64``: file, offset and bytes of every image.
        members: N names, of the images in their files.
        preprocess: see :class:`EncodedImages`.
    """

    def __init__(self, paths: Sequence[Path], places: Any, members: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(preprocess)
        self._paths, self._places, self._members = tuple(paths), places, pack_strings(members)

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """The tar file and the member, as a path."""
        return f"{self._paths[self._places[index, 0]]}/{self._members[index]}"

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
