"""What relevance promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise


def list_promises(name: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one network has figures for."""
    for exit_index, times in found["explain"].items():
        what = f"{name}: explain(relevance=True) above explain, over the stages' forward pass, exit {exit_index} answers"
        yield Promise(f"relevance|{name}|{exit_index}", what, times["ratio"][0], "<=", 1.5)
