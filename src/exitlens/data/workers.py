"""Batches of samples decoded in worker processes, in order, without copies between them; and reading ahead in a thread.

PyTorch's ``DataLoader`` reports a killed process by an exception anywhere in the main thread and a bad file by a traceback,
and it needs room in ``/dev/shm``. Here every process decodes straight into memory that it shares with this one, and the file
that it was reading is known when it dies or hangs.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exitlens.data.readers import Reader
from exitlens.errors import DataError, InputError
from exitlens.launch import count_local
from exitlens.types.settings import WHOLE, check_number

DEPTH = 2  # batches that a process decodes ahead
TIMEOUT_S = 300.0  # limit for one sample
MOST_WORKERS = 8
Plan = Sequence[Sequence[int]]  # rows of the samples of every batch
T = TypeVar("T")
_END = object()
_KINDS: dict[torch.dtype, Any] = {torch.uint8: np.dtype(np.uint8), torch.float32: np.dtype(np.float32)}
Outcome = tuple[list[int], list[tuple[int, str]], str]  # places of good samples, rows and reasons of bad ones, other trouble


class Decoded(NamedTuple):
    """A batch of a plan."""

    values: Tensor  # (b,*shape) of the samples that could be read; overwritten when the next batch is taken
    good: list[int]  # their places in the plan's batch
    bad: list[tuple[int, str]]  # rows of the others, with reasons
    trouble: str = ""  # what else the reader says is wrong


def choose_workers(workers: int | None, batches: int) -> int:
    """Return the number of processes that decode: by default one for each core (at most 8), and none for a single batch.

    Processes that torchrun started on this machine share its cores.
    """
    can_fork = sys.platform == "linux"  # without an importable main module and without pickling
    if workers is None:
        cores = len(os.sched_getaffinity(0)) // count_local() if can_fork else 1
        workers = min(MOST_WORKERS, cores) if cores > 1 else 0
    check_number("workers", workers, WHOLE)
    if workers and not can_fork:
        raise InputError(f"workers: processes that decode need Linux, this is {sys.platform}. Fix: leave workers out, or 0")
    return min(workers, batches) if batches > 1 else 0


def decode_batches(
    reader: Reader,
    plan: Plan,
    shape: Sequence[int],
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    dtype: torch.dtype = torch.uint8,
) -> Iterator[Decoded]:
    """Decode the batches of a plan, in order, in this process (0 workers) or in others; samples have one shape and dtype.

    A process that is killed or needs more than ``timeout_s`` for a sample is a :class:`DataError`.
    """
    if workers == 0:
        slot = np.empty((max(map(len, plan), default=0), *shape), _KINDS[dtype])
        for rows in plan:
            good, bad, trouble = _decode_into(reader, rows, slot)
            yield Decoded(torch.from_numpy(slot[: len(good)]), good, bad, trouble)
        return
    Image.init()  # every process would import the formats for itself
    pool: list[_Worker] = []
    try:
        for i in range(workers):
            pool.append(_Worker(reader, plan[i::workers], shape, _KINDS[dtype], [other.connection for other in pool]))
        for number in range(len(plan)):
            worker = pool[number % workers]
            good, bad, trouble = worker.receive(reader, timeout_s)
            yield Decoded(torch.from_numpy(worker.slots[number // workers % DEPTH][: len(good)]), good, bad, trouble)
            with suppress(OSError):  # it may be dead or done: the next receive tells
                worker.connection.send_bytes(b"1")  # it may use the memory of this batch again
    finally:
        for worker in pool:
            worker.stop()


def _decode_into(reader: Reader, rows: Sequence[int], slot: Any, progress: Any = None) -> Outcome:
    """Decode a batch to the start of ``slot``; ``progress`` gets the row that is being read."""
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    for place, row in enumerate(rows):
        if progress is not None:
            progress[0], progress[1] = row, progress[1] + 1
        try:
            values = reader.read(row)
        except DataError as error:
            bad.append((row, str(error)))
            continue
        except Exception as error:
            raise DataError(f"data: {reader.name(row)}: its reader failed ({type(error).__name__}: {error})") from error
        if tuple(values.shape) != slot.shape[1:] or _KINDS.get(values.dtype) != slot.dtype:
            got = f"{tuple(values.shape)} {values.dtype}"
            raise InputError(f"reader: expected {slot.shape[1:]} {slot.dtype} of {reader.name(row)}, got {got}")
        slot[len(good)] = values.numpy()
        good.append(place)
    return good, bad, getattr(reader, "trouble", "")


class _Worker:
    """A process that decodes its share of the batches into shared memory, ``DEPTH`` slots in turn."""

    def __init__(self, reader: Reader, plan: Plan, shape: Sequence[int], kind: Any, inherited: list[Connection]) -> None:
        context = multiprocessing.get_context("fork")
        size = max(map(len, plan))
        count = DEPTH * size * int(np.prod(shape))
        memory = mmap.mmap(-1, max(1, count) * kind.itemsize)
        self.slots = np.frombuffer(memory, kind)[:count].reshape(DEPTH, size, *shape)
        self._progress = np.frombuffer(mmap.mmap(-1, 16), np.int64)  # the row that is being read, and how many came before
        self.connection, end = context.Pipe()
        arguments = (reader, plan, self.slots, self._progress, end, [*inherited, self.connection])
        self._process = context.Process(target=_work, args=arguments, daemon=True, name="exitlens-decode")
        self._process.start()
        end.close()

    def receive(self, reader: Reader, timeout_s: float) -> Outcome:
        """Wait for the next batch."""
        seen, since = -1, time.monotonic()
        while not wait([self.connection, self._process.sentinel], min(timeout_s, 1.0)) and self._process.is_alive():
            if self._progress[1] != seen:
                seen, since = int(self._progress[1]), time.monotonic()
            elif time.monotonic() - since > timeout_s:
                name = reader.name(int(self._progress[0]))
                raise DataError(f"data: {name}: reading it takes more than {timeout_s:g} s: is its disk or network there?")
        try:
            if not self.connection.poll():
                raise EOFError
            outcome = self.connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            code = self._process.exitcode or 0
            cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            why = ", as the system does when memory runs out: use fewer workers" if code == -signal.SIGKILL else ""
            where = reader.name(int(self._progress[0])) if self._progress[1] else "its first sample"
            fix = "start again (fit with --resume goes on from its last epoch), or decode in the main process: --workers 0"
            problem = f"a process that decodes was ended {cause}{why}. It was at {where}"
            raise DataError(f"data: {problem}. Fix: {fix} (workers=0)") from error
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self.connection.close()


def _work(
    reader: Reader, plan: Plan, slots: Any, progress: Any, connection: Connection, inherited: list[Connection]
) -> None:
    """Run in the process, until it is done, is told to end, or finds that its parent is gone."""
    gc.freeze()  # garbage of the parent: its end may wait for threads that are not there after a fork, for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # readers have a limit of their own, and errors for it
    torch.set_num_threads(1)  # nor are OpenMP's threads there
    parent = os.getppid()
    for other in inherited:  # else they would keep each other's pipes open
        other.close()
    with suppress(BrokenPipeError, EOFError, ConnectionResetError):
        for number, rows in enumerate(plan):
            if number >= DEPTH:
                while not connection.poll(2):
                    if os.getppid() != parent:
                        return
                connection.recv_bytes()
            try:
                connection.send(_decode_into(reader, rows, slots[number % DEPTH], progress))
            except (DataError, InputError) as error:
                connection.send(error)
                return


class Prefetch(Generic[T]):
    """Read an iterator in a thread, at most ``depth`` items ahead; leaving the context stops it after its next item."""

    def __init__(self, items: Iterator[T], depth: int = 2) -> None:
        self._queue: queue.Queue[object] = queue.Queue()
        self._room = threading.Semaphore(depth)  # for items that are read ahead
        self._stopped = False
        self.ended = False  # the iterator ended or failed, and all its items were given
        self.error: BaseException | None = None  # what the iterator raised
        self._thread = threading.Thread(target=self._read, args=(items,), daemon=True, name="exitlens-prefetch")
        self._thread.start()

    def _read(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                self._room.acquire()
                if self._stopped:
                    return
                self._queue.put(item)
        except BaseException as error:  # KeyboardInterrupt, too, or the reader would wait for ever
            self.error = error
        finally:
            self._queue.put(_END)

    def next(self, timeout_s: float | None = None) -> T | None:
        """Return the next item; ``None`` if it does not come in time, or if there is none (:attr:`ended`, :attr:`error`)."""
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is _END:
            self.ended = True
            return None
        self._room.release()
        return item  # type: ignore[return-value]

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join(timeout=5)
