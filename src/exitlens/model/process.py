"""All state of the whole process that exitlens changes, in a list, and the code for the two parts that answers change.

====================================  =============================================  ============================
state                                 changed by                                     until
====================================  =============================================  ============================
PyTorch's number of threads           answers with ``Tuning.threads``                the answer is given
training mode of a network's modules  answers by the network's own weights           the last of them is given
memory that malloc keeps              answers with ``Tuning.keep_memory``            the process ends
filters of ``warnings``               ``net.compile``, ``attach``, writing ONNX      it returns
mkldnn, fast path of attention        ``attach`` (it counts multiply-accumulates)    it returns
standard error, a logger's level      ``attach``, where it uses ``torch.export``     it returns
random state                          ``attach`` (weights of new heads), commands    the process ends
threads, processors, standard error   ``exitlens bench``, ``exitlens demo``          it returns
``GRADIO_*``, ``HF_HUB_OFFLINE``      ``exitlens app``                               the process ends
Python's switch interval              ``exitlens serve``                             the process ends
``PROMETHEUS_MULTIPROC_DIR``          ``exitlens serve``                             the process ends
====================================  =============================================  ============================

docs/guides/process.md says more about each. Several threads may answer with one network at the same time: the first two
rows are counted, so no thread changes what another had set. The others change before threads start. One thing is up to
PyTorch: a thread that first uses PyTorch outside our networks starts with the number of threads that was set last.

glibc returns large tensors to the system and gets them back with page faults, which on CPUs can cost as much as the
arithmetic: a batch of 32 images takes half the time in ResNet-50 once memory is kept (docs/measured/performance.md).
PyTorch's tuning guide preloads jemalloc or tcmalloc for that; here two settings of glibc itself do it.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_KEPT = {_TRIM: 2**31 - 1, _MMAP: 2**30}
_USUAL = {_TRIM: 64 * 2**20, _MMAP: 32 * 2**20}  # where glibc's own adaptation ends up with large tensors
_state = {"kept": False}


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return the C library if it is glibc, else ``None``."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def can_keep_memory() -> bool:
    """Return whether this process can keep memory: only glibc lets it."""
    return _library() is not None


def keep_memory(kept: bool = True) -> bool:
    """Make the whole process keep the memory it has used, or stop keeping it; return whether that changed anything.

    A process that keeps memory stays as large as it once was. Without glibc, nothing happens.
    """
    library = _library()
    if library is None or _state["kept"] == kept:
        return False
    limits = _KEPT if kept else _USUAL
    if not library.mallopt(_MMAP, limits[_MMAP]):  # older versions of glibc take no more than the usual maximum
        library.mallopt(_MMAP, _USUAL[_MMAP])
    library.mallopt(_TRIM, limits[_TRIM])
    _state["kept"] = kept
    return True


def release_memory() -> None:
    """Return free memory of all threads to the system; without glibc, nothing happens."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@contextmanager
def hold_memory() -> Iterator[None]:
    """Keep memory within the context, so that timings are free of page faults, which depend on the batch size."""
    changed = keep_memory()
    try:
        yield
    finally:
        if changed:
            keep_memory(False)


class ThreadLimit:
    """Lowers PyTorch's number of threads for a while, safely in several Python threads at once.

    ``torch.set_num_threads`` sets the number of the calling thread, and the number that new threads start with. A new
    thread must not mistake another thread's limit for its own number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: list[int] = []  # in force now
        self._usual = 0  # the number before the first limit
        self._known = threading.local()  # marks threads whose number is their own

    @contextmanager
    def apply(self, count: int) -> Iterator[None]:
        """Allow at most ``count`` threads within the context."""
        with self._lock:
            before = torch.get_num_threads()
            if not self._limits:
                self._usual = before
            elif before in self._limits and not hasattr(self._known, "marked"):
                before = self._usual
            self._known.marked = True
            if before > count:
                self._limits.append(count)
                torch.set_num_threads(count)
        try:
            yield
        finally:
            if before > count:
                with self._lock:
                    self._limits.remove(count)
                    torch.set_num_threads(before)


THREAD_LIMIT = ThreadLimit()
