"""The command line: parse, call one function, print a short table or, with --json, one JSON object.

Each verb imports what it needs when it runs, so that ``exitlens --help`` does not wait for PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console

from exitlens.cli import app, bench, demo, fit, judge, predict  # registers their verbs
from exitlens.cli.options import literal, verbs
from exitlens.errors import DataWarning, ExitlensError

__all__ = ["app", "bench", "demo", "fit", "judge", "main", "predict", "verbs"]


def main() -> None:
    """Runs the command line; an error of ours becomes one line (and its notes) on standard error, with exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            verbs()
    except ExitlensError as error:
        text = literal("\n".join([str(error), *getattr(error, "__notes__", [])]))
        Console(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error


def _show_warning(
    usual: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any, **more: Any
) -> None:
    """A warning of ours becomes one line on standard error; others are shown as Python does."""
    if not issubclass(category, DataWarning):
        usual(message, category, *rest, **more)
        return
    text = f"[bold yellow]warning:[/bold yellow] {literal(str(message))}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
