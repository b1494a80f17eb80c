"""The command line: parse, call one function, print a short table or, with --json, one JSON object.

Each verb imports what it needs when it runs, so that ``exitlens --help`` does not wait for PyTorch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Context, Exit, Option

from exitlens.cli import answering, training  # registers their verbs
from exitlens.cli.options import complain, name_options, verbs
from exitlens.errors import DataWarning, ExitlensError, InputError, WeightsWarning
from exitlens.launch import is_launched, let_threads_sleep, read_rank

__all__ = ["answering", "main", "training", "verbs"]

SHARED = ("fit", "calibrate", "evaluate")  # verbs that several processes can share


def _show_version(asked: bool) -> None:
    if asked:
        import exitlens

        print(f"exitlens {exitlens.__version__}")
        raise Exit


@verbs.callback()
def check_processes(
    context: Context,
    version: Annotated[bool, Option("--version", help="Show the version.", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Raise :class:`InputError` if ``torchrun`` started a verb that runs in one process."""
    if is_launched() and context.invoked_subcommand not in SHARED:
        raise InputError(
            f"torchrun: {', '.join(SHARED)} share their work among processes, {context.invoked_subcommand} runs in one: "
            "start it without torchrun (docs/guides/several_machines.md has predictions on many machines)"
        )


def main() -> None:
    """Run the command line; an error of ours is one line (and its notes) on standard error, in the first process alone."""
    let_threads_sleep()
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            if read_rank() > 0:
                warnings.simplefilter("ignore")
                stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            verbs()
    except ExitlensError as error:
        if read_rank() == 0 or not error.is_told:
            complain("error", name_options("\n".join([str(error), *getattr(error, "__notes__", [])])))
        if error.is_told:  # wait until all know: torchrun ends the others as soon as one has ended, printed or not
            from exitlens.ranks import find_ranks

            with suppress(ExitlensError):
                find_ranks().gather(None)
        raise SystemExit(2) from error


def _show_warning(
    usual: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any, **named: Any
) -> None:
    """Print a warning of ours as one line on standard error; show others as Python does."""
    if issubclass(category, DataWarning | WeightsWarning):
        complain("warning", str(message))
    else:
        usual(message, category, *rest, **named)
