"""Lets the process keep memory that it has used, where glibc would give large tensors back to the system every time.

Memory that comes from the system again costs page faults, on CPUs up to as much as the arithmetic: with memory kept, a batch
of 32 images takes half the time in ResNet-50 (docs/measured/performance.md). PyTorch's tuning guide gets the same by
preloading jemalloc or tcmalloc; this takes two settings of the C library that is there.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_KEPT = {_TRIM: 2**31 - 1, _MMAP: 2**30}
_USUAL = {_TRIM: 64 * 2**20, _MMAP: 32 * 2**20}  # where glibc's own adaptation ends up with large tensors
_state = {"kept": False}


@lru_cache(maxsize=1)
def _library() -> Any:
    """The C library if it is glibc, else ``None``."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def can_keep_memory() -> bool:
    """Whether this process can be told to keep memory: where the C library is glibc."""
    return _library() is not None


def keep_memory(kept: bool = True) -> bool:
    """Lets the whole process keep the memory it has used, or not; returns whether that changed anything.

    Kept, the process stays as large as it once was. Elsewhere than with glibc nothing happens.
    """
    library = _library()
    if library is None or _state["kept"] == kept:
        return False
    wanted = _KEPT if kept else _USUAL
    if not library.mallopt(_MMAP, wanted[_MMAP]):  # older glibc takes no more than the usual maximum
        library.mallopt(_MMAP, _USUAL[_MMAP])
    library.mallopt(_TRIM, wanted[_TRIM])
    _state["kept"] = kept
    return True


def release_memory() -> None:
    """Gives back what is free now, of all threads; elsewhere than with glibc nothing happens."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@contextmanager
def hold_memory() -> Iterator[None]:
    """Keeps memory for a while: times without page faults, which come and go with the size of the batch."""
    changed = keep_memory()
    try:
        yield
    finally:
        if changed:
            keep_memory(False)
