"""Makes runs in processes side by side, tells of each as it ends, and goes on where one fails."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from typing import Any


def is_chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a run is asked for: by one of the patterns, or because there are none."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def make_runs(
    todo: Mapping[str, tuple[Any, ...]], do: Callable[..., str], start_worker: Callable[[], None], processes: int = 2
) -> list[str]:
    """Calls ``do(*arguments)`` for every run and prints what it says.

    Args:
        todo: arguments by name of the run, in order.
        do: importable, as processes are spawned. start_worker: called once in each of the ``processes``.

    Returns:
        The names of those that failed.
    """
    failed = []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), start_worker) as pool:
        for i, (name, result) in enumerate([(name, pool.submit(do, *one)) for name, one in todo.items()], 1):
            try:
                print(f"[{i}/{len(todo)}] {result.result()}", flush=True)
            except Exception as error:
                failed.append(name)
                print(f"[{i}/{len(todo)}] {name} failed: {type(error).__name__}: {error}", flush=True)
    return failed
