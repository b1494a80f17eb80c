"""Readers, which decode samples one at a time and can be pickled; errors about bad samples; sequences made on demand."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exitlens.errors import DataError
from exitlens.io import make_directory
from exitlens.modalities.arrays import open_regular
from exitlens.modalities.image import FORMATS, decode_image
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess, SeriesPreprocess, VectorPreprocess

DECODER = b"2"  # part of a cache's keys; counted up when a change of the decoder gives other pixels
Shape = tuple[int, ...]
T = TypeVar("T")


class LazySequence(Sequence[T], ABC):
    """A sequence whose items are made on demand by :meth:`get` of a subclass."""

    @abstractmethod
    def get(self, index: int) -> T:
        """Return the item at a place in ``[0, len(self))``."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return [self.get(i) for i in places] if isinstance(places, range) else self.get(places)


class RowNames(LazySequence[str]):
    """Names of the rows of several parts, each with a prefix, which comes before the number of a row, and a count."""

    def __init__(self, parts: Sequence[tuple[str, int]]) -> None:
        self._prefixes = [prefix for prefix, _ in parts]
        self._starts = [0, *accumulate(count for _, count in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def get(self, index: int) -> str:
        """Return prefix and number."""
        part = bisect_right(self._starts, index) - 1
        return f"{self._prefixes[part]}{index - self._starts[part]}"


class Picked(LazySequence[T]):
    """The items of another sequence at given rows, to which more rows may be added."""

    def __init__(self, values: Sequence[T], rows: Sequence[int]) -> None:
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, index: int) -> T:
        """Return the item at a row."""
        return self._values[self._rows[index]]


class PackedStrings(LazySequence[str]):
    """Strings in one block of bytes: a million file names or texts take their bytes and sixteen more each.

    Worker processes share the block, whereas every process would come to own a copy of a list of strings.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._starts, self._ends = array("q"), array("q")
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add a string at the end."""
        self._starts.append(len(self._bytes))
        self._bytes += string.encode("utf-8", "surrogatepass")  # file names have half a surrogate for odd bytes
        self._ends.append(len(self._bytes))

    def subset(self, indices: Tensor) -> PackedStrings:
        """Return the strings at ``indices`` (``(n,)`` integers), which share the bytes."""
        part = PackedStrings()
        part._bytes = self._bytes
        rows = torch.arange(len(self))[indices].numpy()
        part._starts, part._ends = (array("q", np.array(at)[rows].tobytes()) for at in (self._starts, self._ends))
        return part

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, index: int) -> str:
        """Return the string at a place."""
        return self._bytes[self._starts[index] : self._ends[index]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        """Tell if another sequence has the same strings."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can grow

    def __repr__(self) -> str:
        return f"PackedStrings({self[:3]}{'...' if len(self) > 3 else ''}, {len(self)} strings)"


def pack_strings(strings: Iterable[str]) -> PackedStrings:
    """Pack strings unless they are packed."""
    return strings if isinstance(strings, PackedStrings) else PackedStrings(strings)


class Reader(Protocol):
    """What a :class:`~exitlens.data.sets.LazySet` needs to read its samples; worker processes get a copy."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """Return a sample, all of one shape and dtype: pixels ``(C,H,W)`` ``uint8``, or other values ``float32``.

        A bad sample raises a :class:`DataError` that names it.
        """

    def name(self, index: int) -> str:
        """Return what errors call a sample: a path, or file and row."""


class PixelCache:
    """Decoded and resized pixels in a directory, one file for each image, which any number of processes may share.

    The key is a hash of the encoded bytes and of the shape; a file appears complete or not at all, and carries a checksum.
    Nothing is ever deleted: the directory holds ``C*H*W`` bytes for every image, and any file may be deleted at any time.
    """

    def __init__(self, directory: Path | str) -> None:
        self._root = Path(directory)
        self.trouble = ""  # why nothing is written any more
        make_directory(self._root, "cache")

    def find(self, content: bytes, shape: Shape) -> Tensor | None:
        """Return the pixels ``(C,H,W)`` ``uint8`` of an encoded image, if they are there and whole."""
        try:
            entry = self._locate(content, shape).read_bytes()
        except OSError:
            return None
        size = int(np.prod(shape))
        if len(entry) != size + 4 or zlib.crc32(entry[:size]).to_bytes(4, "little") != entry[size:]:
            return None
        return torch.from_numpy(np.frombuffer(entry, np.uint8, size).reshape(shape).copy())

    def keep(self, content: bytes, pixels: Tensor) -> None:
        """Write the pixels of an encoded image; a full disk becomes :attr:`trouble`, not an error."""
        if self.trouble:
            return
        path = self._locate(content, tuple(pixels.shape))
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        raw = pixels.numpy().tobytes()
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))
            temporary.replace(path)
        except OSError as error:
            effect = "images that are not in it are decoded every time"
            fix = "free space, or choose another directory"
            self.trouble = f"cache: {self._root} cannot be written ({error.strerror}): {effect}. Fix: {fix}"
            with suppress(OSError):
                temporary.unlink()

    def _locate(self, content: bytes, shape: Shape) -> Path:
        size = "x".join(map(str, shape)).encode()[:16]
        key = hashlib.blake2b(content, digest_size=16, person=size, salt=DECODER).hexdigest()
        return self._root / key[:2] / key[2:]


def find_shape(preprocess: Preprocess | ArrayPreprocess) -> tuple[int, ...]:
    """Return the shape of a sample; empty for series of any length."""
    channels = len(preprocess.mean)
    if isinstance(preprocess, SeriesPreprocess):
        return (channels, preprocess.length) if preprocess.length else ()
    return (channels,) if isinstance(preprocess, VectorPreprocess) else (channels, *preprocess.size)


class NamedReader:
    """What all our readers have: N ``names``, which errors call the samples; below ``root`` they are files."""

    def __init__(self, names: Sequence[str], root: Path | None = None) -> None:
        self._names, self._root = names, root

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return what errors call a sample."""
        name = self._names[index]
        return name if self._root is None else str(self._root / name)


class EncodedImages(NamedReader, ABC):
    """A reader of N encoded images (PNG, JPEG and so on), from wherever :meth:`read_bytes` finds them.

    ``preprocess`` gives the size and number of channels of the pixels.
    """

    def __init__(self, names: Sequence[str], preprocess: Preprocess, root: Path | None = None) -> None:
        super().__init__(names, root)
        self.shape = (len(preprocess.mean), *preprocess.size)
        self.cache: PixelCache | None = None

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return an encoded image, or raise a :class:`DataError` that names it."""

    def read(self, index: int) -> Tensor:
        """Return the pixels of an image."""
        content = self.read_bytes(index)
        pixels = None if self.cache is None else self.cache.find(content, self.shape)
        if pixels is None:
            pixels = decode_image(content, self.name(index), self.shape[1:], self.shape[0])
            if self.cache is not None:
                self.cache.keep(content, pixels)
        return pixels

    @property
    def trouble(self) -> str:
        """A warning besides bad images, to be given once: pixels cannot be cached."""
        return "" if self.cache is None else self.cache.trouble


_WHOLE = ((b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"), (b"\xff\xd8\xff", b"\xff\xd9"))  # both ends of a PNG and of a JPEG


class ImageFiles(EncodedImages):
    """Image files with N names, relative to ``root``."""

    def __init__(self, root: Path, names: Iterable[str], preprocess: Preprocess) -> None:
        super().__init__(pack_strings(names), preprocess, root)

    def read_bytes(self, index: int) -> bytes:
        """Return the file's bytes."""
        name = self.name(index)
        with open_regular(Path(name), name) as file:
            return file.read()

    def check_labels(self, index: int) -> None:
        """Raise a :class:`DataError` if labels that lie in a file of their own are bad; here there are none."""


class FileCheck:
    """A reader of empty samples: reading one only tells whether an image file is bad, and mostly by its two ends."""

    def __init__(self, files: ImageFiles) -> None:
        self._files, self.name = files, files.name

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Tensor:
        """Return no values, or raise a :class:`DataError` about a bad file; only a suspicious file is decoded for that."""
        name = self.name(index)
        with open_regular(Path(name), name) as file:
            start, size = file.read(8), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 12))
            tail = next((tail for head, tail in _WHOLE if start.startswith(head)), None)
            is_good = tail is not None and file.read().endswith(tail)
            with suppress(Exception):
                file.seek(0)
                is_good = is_good or (tail is None and bool(Image.open(file, formats=FORMATS)))
        if not is_good:
            self._files.read(index)  # says what is wrong, if anything is
        self._files.check_labels(index)
        return torch.empty(0, dtype=torch.uint8)


def check_bad(bad: Sequence[str], total: int, skip_bad: bool, kind: str = "files") -> None:
    """Raise a :class:`DataError` that names unreadable files, unless they may be skipped and others remain."""
    if bad and (not skip_bad or len(bad) == total):
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        fix = "" if len(bad) == total else ". Fix: repair them, or pass --skip-bad (skip_bad=True) to leave them out"
        error = DataError(f"data: {len(bad)} of {total} {kind} cannot be read{fix}:\n  {shown}")
        error.is_skippable = bool(fix)
        raise error


def refuse_bad(reason: str, fix: str) -> DataError:
    """Return the error about a sample that cannot be read while others remain: ``fix`` it, or leave it out."""
    skip = "pass --skip-bad (skip_bad=True) to leave out files that cannot be read"
    error = DataError(f"data: {reason}. Fix: {fix}, or {skip}")
    error.is_skippable = True
    return error
