"""Progress: bars that vanish when they are done; without a terminal, a line every half minute on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from threading import Event, Thread
from typing import TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
Advance = Callable[[], object]  # called after every step
INTERVAL = 30.0  # seconds between lines without a terminal


def show_progress(shown: bool, console: Console | None = None) -> Progress:
    """Return a progress display, to be entered and given tasks; a task without ``total`` shows the time that it takes."""
    target = console or get_console()
    kind = Progress if not shown or target.is_terminal or target.is_jupyter else _ProgressLines
    times = TimeElapsedColumn(), TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times
    return kind(*columns, console=target, disable=not shown, transient=True, speed_estimate_period=600)


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yield the items, and show how many there have been."""
    with show_progress(True) as bar:
        yield from bar.track(items, total=total, description=description)


class _ProgressLines(Progress):
    """Progress for a log file: what is left, every :data:`INTERVAL` seconds."""

    def start(self) -> None:
        self._stopped = Event()
        self._thread = Thread(target=self._print_lines, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _print_lines(self) -> None:
        while not self._stopped.wait(INTERVAL):
            if parts := [_describe(task) for task in self.tasks if task.visible and not task.finished]:
                print("; ".join(parts), file=sys.stderr, flush=True)


def _describe(task: Task) -> str:  # epoch 3: 120/800, 0:02:10 left
    elapsed = timedelta(seconds=int(task.elapsed or 0))
    if task.total is None:
        return f"{task.description}: {elapsed} so far"
    remaining = task.time_remaining
    rest = f"{elapsed} so far" if remaining is None else f"{timedelta(seconds=int(remaining))} left"
    return f"{task.description}: {task.completed:.0f}/{task.total:.0f}, {rest}"


def print_line(console: Console, line: str, *, highlight: bool = True) -> None:
    """Print a line of markup, wrapped to the width of a terminal; in a file or pipe it stays one line."""
    console.print(line, highlight=highlight, soft_wrap=not console.is_terminal)
