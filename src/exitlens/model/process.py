"""PyTorch's number of threads, and the memory that malloc keeps; docs/guides/process.md lists what else exitlens changes.

glibc returns large tensors to the system and gets them back with page faults, which on CPUs can cost as much as the
arithmetic (docs/measured/performance.md). Two settings of glibc keep the memory; no other malloc has to be preloaded.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
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


class SharedCores:
    """Lowers PyTorch's number of threads while other processes keep the cores busy, and raises it again afterwards.

    Threads of one operation wait for the last of them. If another process holds the core of one, the step takes several
    times as long as on one thread (docs/guides/training.md). Processes that read data for this one count as it
    does. Where the system does not tell how busy its cores are (``/proc/stat`` of Linux), nothing changes.
    """

    PERIOD = 1.0  # seconds between two looks

    def __init__(self) -> None:
        self.limit = 0  # threads while nobody else is busy
        self._last: tuple[float, float] | None = None  # time, and seconds that our cores have been free for this process

    @contextmanager
    def share(self, enabled: bool = True) -> Iterator[None]:
        """Let :meth:`adapt` change the number of threads within the context; the number before is set again at its end."""
        self.limit = torch.get_num_threads()
        self._last = _look_at_cores() if enabled and self.limit > 1 else None
        try:
            yield
        finally:
            self._last = None
            torch.set_num_threads(self.limit)

    def adapt(self) -> None:
        """Use as many threads as other processes leave cores; may be called often, but looks once a second."""
        if self._last is None or time.perf_counter() - self._last[0] < self.PERIOD:
            return
        then, self._last = self._last, _look_at_cores()
        if self._last is not None:
            free = (self._last[1] - then[1]) / (self._last[0] - then[0])
            threads = min(self.limit, max(1, round(free)))
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)


def _look_at_cores() -> tuple[float, float] | None:
    """Return the time, and the seconds that the cores this process may use have idled, or worked for it or its workers."""
    try:
        table = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
        rows = [table[f"cpu{core}"].split() for core in os.sched_getaffinity(0)]
        ticks = sum(int(row[3]) + int(row[4]) for row in rows)
    except (OSError, AttributeError, LookupError, ValueError):
        return None
    for worker in multiprocessing.active_children():
        with suppress(OSError):  # it has just ended
            ticks += sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    ours = sum(os.times()[:4])  # this process, and workers that have ended
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK") + ours


SHARED_CORES = SharedCores()
