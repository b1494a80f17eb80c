"""What training promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise
from benchmarks.training.runs import STEP


def list_promises(name: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one run has figures for."""
    if name.startswith(STEP):
        title = f"{name.removeprefix(STEP)}: a training step with EGT over one without"
        yield Promise(name, title, found["ratio"][0], "<=", 1.35)
        return
    faster = found["speedup"][0]
    yield Promise(f"frozen|{name}", f"{name}: a frozen backbone that runs once, times as quick an epoch", faster, ">=", 10)
    furthest = found["furthest_weight"]
    yield Promise(f"frozen-equal|{name}", f"{name}: furthest weight from training without", furthest, "<=", 1e-3)
