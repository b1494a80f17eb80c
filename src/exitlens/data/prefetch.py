"""Reading ahead: a thread loads the next batches while the network computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetch(Generic[T]):
    """Read an iterator in a thread, at most ``depth`` items ahead; leaving the context stops it after its next item."""

    def __init__(self, items: Iterator[T], depth: int = 2) -> None:
        self._queue: queue.Queue[object] = queue.Queue(depth)
        self._stopped = threading.Event()
        self.ended = False  # the iterator ended or failed, and all its items were given
        self.error: BaseException | None = None  # what the iterator raised
        self._thread = threading.Thread(target=self._read, args=(items,), daemon=True, name="exitlens-prefetch")
        self._thread.start()

    def _read(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # KeyboardInterrupt, too, or the reader would wait for ever
            self.error = error
        finally:
            self._put(_END)

    def _put(self, item: object) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def next(self, timeout_s: float | None = None) -> T | None:
        """Return the next item; ``None`` if it does not come in time, or (:attr:`ended`) there is none.

        An exception of the iterator ends it, too, and is kept in :attr:`error`.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is _END:
            self.ended = True
            return None
        return item  # type: ignore[return-value]

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)
