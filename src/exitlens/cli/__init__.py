"""The command line: parse, call one function, print a short table or, with --json, one JSON object.

Each verb imports what it needs when it runs, so that ``exitlens --help`` does not wait for PyTorch.
"""

from __future__ import annotations

from rich.console import Console

from exitlens.cli import app, bench, demo, fit, judge, predict  # registers their verbs
from exitlens.cli.options import literal, verbs
from exitlens.errors import ExitlensError

__all__ = ["app", "bench", "demo", "fit", "judge", "main", "predict", "verbs"]


def main() -> None:
    """Runs the command line; an error of ours becomes one line (and its notes) on standard error, with exit code 2."""
    try:
        verbs()
    except ExitlensError as error:
        text = literal("\n".join([str(error), *getattr(error, "__notes__", [])]))
        Console(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
