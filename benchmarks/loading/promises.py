"""What reading folders promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one run has figures for."""
    if run == "first-batch":
        what = f"{found['files']:,} JPEGs in a folder: seconds to the first batch"
        yield Promise("loading|first batch", what, found["seconds"][0], "<=", 20)
    if run.startswith("memory-"):
        what = f"{found['files']:,} JPEGs: peak memory of {run.partition('-')[2]} above that of {found['few']:,}, MB"
        yield Promise(f"loading|{run}", what, found["growth_mb"], "<=", 300)
    if run == "throughput":
        figure = found["over_torchvision"]["exitlens"][0]
        yield Promise("loading|throughput", "images a second over torchvision's, 2 processes", figure, ">=", 0.95)
