"""What goes on beside something else: a load in a process of its own, and a question that is asked again and again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.serving.load.trials import Spec, Trial, run_load
from benchmarks.serving.rivals.servers import Server


@contextlib.contextmanager
def start_load(spec: Spec) -> Iterator[Future[Trial]]:
    """The trial, which comes from ``result()``; goes on when its connections are made, and waits for its end."""
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(run_load, spec)
        yield found


class Poll:
    """Asks again and again, on a thread of its own, until the block ends.

    Attributes:
        found: what was answered, in turn; an error counts by the name of its class.
    """

    def __init__(self, ask: Callable[[], Any], seconds: float) -> None:
        self.ask, self.seconds, self.found = ask, seconds, list[Any]()
        self._over, self._thread = threading.Event(), threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Poll:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.seconds, time.monotonic())
            try:
                self.found.append(self.ask())
            except OSError as error:  # urllib's are, too
                self.found.append(type(getattr(error, "reason", error)).__name__)

    def count(self) -> dict[str, int]:
        """How often each came."""
        return dict(sorted(Counter(map(str, self.found)).items()))


def wait_until_idle(server: Server, seconds: float = 1.0, most: float = 60.0) -> None:
    """Until its processes have computed next to nothing for so long: all of them are ready then."""
    end = time.monotonic() + most
    while time.monotonic() < end:
        before = server.read_cpu_seconds()
        time.sleep(seconds)
        if server.read_cpu_seconds() - before < 0.05 * seconds:
            return
    raise RuntimeError(f"the server was not idle within {most:.0f} s")
