"""Readers: where lazily read samples come from. They are small, can be pickled, and decode one sample at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from exitlens.data.loading.cache import PixelCache
from exitlens.data.loading.packed import pack_strings
from exitlens.errors import DataError
from exitlens.modalities.image import decode_image
from exitlens.types import Preprocess

MAX_BYTES = 1_000_000_000  # of one file


class Reader(Protocol):
    """What a :class:`~exitlens.data.lazy.LazySet` needs to read its samples; worker processes get a copy."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """Sample ``index``, all of one shape and dtype: pixels ``(C,H,W)`` ``uint8``, or other values ``float32``.

        Raises :class:`DataError` naming it if it is bad.
        """

    def name(self, index: int) -> str:
        """What errors call it: a path, or file and row."""


class EncodedImages(ABC):
    """A reader of encoded images (PNG, JPEG and so on), from wherever :meth:`read_bytes` finds them.

    Args:
        preprocess: its size and number of channels are those of the pixels.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.shape = (len(preprocess.mean), *preprocess.size)
        self.cache: PixelCache | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The encoded image, or a :class:`DataError` that names it and says why it cannot be had."""

    @abstractmethod
    def name(self, index: int) -> str:
        """See :class:`Reader`."""

    def read(self, index: int) -> Tensor:
        """See :class:`Reader`."""
        content = self.read_bytes(index)
        found = None if self.cache is None else self.cache.find(content, self.shape)
        if found is None:
            found = decode_image(content, self.name(index), self.shape[1:], self.shape[0])
            if self.cache is not None:
                self.cache.keep(content, found)
        return found

    @property
    def trouble(self) -> str:
        """What is wrong besides bad images, and told once: that pixels cannot be kept."""
        return "" if self.cache is None else self.cache.trouble


class ImageFiles(EncodedImages):
    """Image files.

    Args:
        root: what the names are relative to.
        names: N of them.
        preprocess: see :class:`EncodedImages`.
    """

    def __init__(self, root: Path, names: Iterable[str], preprocess: Preprocess) -> None:
        super().__init__(preprocess)
        self._root, self._names = root, pack_strings(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._names[index])

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`EncodedImages.read_bytes`."""
        return read_regular(self._root / self._names[index], self.name(index))


def read_regular(path: Path, name: str) -> bytes:
    """A file's bytes; a :class:`DataError` that begins with ``name`` for devices, pipes and what is no image by its size."""
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise DataError(f"{name}: {path} is a device or a pipe, no file")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name}: it has more than {MAX_BYTES:,} bytes: no image is that large")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {error.strerror})") from error
