"""What training by several processes promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise

GRACE_S = 40  # torchrun asks a process to end, and kills it 30 seconds later


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """Of one run."""
    kind, _, of = run.partition("-")
    if kind == "seconds":
        what = f"an epoch of two processes of one thread, ratio to one of two, {of}"
        yield Promise(f"processes|{run}", what, found["ratio"][0], "<=", 1.1)
    elif kind == "weights":
        what = "largest difference of a weight after an epoch in double precision, two processes and one"
        yield Promise("processes|weights", what, found["double"], "<=", 1e-5)
        what = "share of weights that differ by 1e-5 or less, in single precision"
        yield Promise("processes|weights, single", what, found["single"]["close"], ">=", 0.99)
        what = "the same from run to run of two processes"
        yield Promise("processes|run to run", what, found["from_run_to_run"], "<=", 0)
    elif kind == "kill":
        what = f"rank {of} killed: torchrun goes on and ends with the same weights (1: yes)"
        yield Promise(f"processes|{run}", what, found["same"], ">=", 1)
    elif kind == "hang":
        what = f"rank {of} stopped: seconds until all have ended, beyond the time-out"
        yield Promise(f"processes|{run}", what, found["seconds"] - found["timeout"], "<=", GRACE_S)
        what = f"rank {of} stopped: the other says what happened (1: yes)"
        yield Promise(f"processes|{run}|said", what, found["said"], ">=", 1)
