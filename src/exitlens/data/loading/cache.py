"""Decoded and resized pixels kept on disk, found again by what was in the file."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import OutputError

Shape = tuple[int, int, int]  # (C,H,W)
DECODER = b"2"  # to be counted up when the same file comes to give other pixels


class PixelCache:
    """A directory of pixels, one file an image, that any number of runs and processes may use at the same time.

    The key is a hash of the encoded file's bytes and of the shape, so that a changed file is decoded anew and equal files
    share an entry. A file appears complete or not at all, and carries a checksum; what is damaged is decoded again. Any file
    may be deleted at any time, and nothing is deleted here: the directory holds ``C*H*W`` bytes for every image.

    Args:
        directory: made if it is not there.

    Raises:
        OutputError: for a directory that cannot be made.
    """

    def __init__(self, directory: Path | str) -> None:
        self._root = Path(directory)
        self.trouble = ""  # why nothing is written any more
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cache: {directory} cannot be a directory ({error}): choose another") from error

    def find(self, content: bytes, shape: Shape) -> Tensor | None:
        """The pixels ``(C,H,W)`` ``uint8`` of an encoded image, if they are there and whole."""
        try:
            found = self._locate(content, shape).read_bytes()
        except OSError:
            return None
        size = int(np.prod(shape))
        if len(found) != size + 4 or zlib.crc32(found[:size]).to_bytes(4, "little") != found[size:]:
            return None
        return torch.from_numpy(np.frombuffer(found, np.uint8, size).reshape(shape).copy())

    def keep(self, content: bytes, pixels: Tensor) -> None:
        """Writes the pixels of an encoded image; a full disk is :attr:`trouble`, not an error."""
        if self.trouble:
            return
        path = self._locate(content, tuple(pixels.shape))  # type: ignore[arg-type]
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        raw = pixels.numpy().tobytes()
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))
            temporary.replace(path)
        except OSError as error:
            self.trouble = (
                f"cache: {self._root} cannot be written ({error.strerror}): what is missing there is decoded every time; "
                "free space, or choose another directory"
            )
            with suppress(OSError):
                temporary.unlink()

    def _locate(self, content: bytes, shape: Shape) -> Path:
        shown = "x".join(map(str, shape)).encode()
        key = hashlib.blake2b(content, digest_size=16, person=shown[:16], salt=DECODER).hexdigest()
        return self._root / key[:2] / key[2:]
