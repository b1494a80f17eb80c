"""Progress bars, all alike, that vanish when they are done."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[], object]  # called after every step


def show_progress(shown: bool, console: Console | None = None) -> Progress:
    """A progress bar, to be entered and given tasks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shown, transient=True)


def print_line(console: Console, line: str, *, highlight: bool = True) -> None:
    """Prints a line of markup; it is wrapped to the width of a terminal, and stays a line in a file or pipe."""
    console.print(line, highlight=highlight, soft_wrap=not console.is_terminal)
