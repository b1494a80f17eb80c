"""State of the whole process that exitlens changes, in one list; and how threads share the part that answering changes.

====================================  =============================================  ============================
state                                 changed by                                     until
====================================  =============================================  ============================
PyTorch's number of threads           answers with ``Tuning.threads``                the answer is given
training mode of a network's modules  answers by its own weights, the first answer   the last of them is given
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

docs/guides/process.md says more of each. Threads may answer by one network at the same time: the first three rows are
counted, so that no thread changes what another had; the rest belongs to calls that are made before threads start. One
thing is PyTorch's own: a thread that uses PyTorch first, and not by a network of ours, begins with the number of threads
that was set last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from exitlens.model.engine.tuning import Tuning
from exitlens.model.malloc import keep_memory


def apply_tuning(tuning: Tuning) -> AbstractContextManager[Any]:
    """The tuning's threads for a while, never more than the caller has; memory is kept from now on, if it says so."""
    if tuning.keep_memory:
        keep_memory()
    return _THREAD_LIMIT.apply(tuning.threads) if tuning.threads else nullcontext()


class ThreadLimit:
    """Lowers the number of PyTorch's threads for a while, for several threads at once.

    PyTorch has one number for every thread. Setting it changes the caller's own, and what a thread begins with that has not
    used PyTorch before. Such a newcomer must not take the limit of another thread for its own number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: list[int] = []  # in force now
        self._usual = 0  # the number before the first of them
        self._known = threading.local()  # marks threads whose number is their own

    @contextmanager
    def apply(self, count: int) -> Iterator[None]:
        """At most ``count`` threads; afterwards the caller's own number again."""
        own = self._enter(count)
        try:
            yield
        finally:
            if own > count:
                with self._lock:
                    self._limits.remove(count)
                    torch.set_num_threads(own)

    def _enter(self, count: int) -> int:
        with self._lock:
            own = torch.get_num_threads()
            if not self._limits:
                self._usual = own
            elif own in self._limits and not hasattr(self._known, "marked"):
                own = self._usual
            self._known.marked = True
            if own > count:
                self._limits.append(count)
                torch.set_num_threads(count)
            return own


_THREAD_LIMIT = ThreadLimit()
