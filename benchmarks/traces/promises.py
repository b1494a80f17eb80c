"""The promises of docs/measured/traces.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises that one run has figures for."""
    if run == "agreement":
        gap = max(found["largest_gap"]["compact"].values())
        yield Promise(
            "traces|agreement", "compact traces: largest gap of a score from the full logits in float64", gap, "<=", 1e-6
        )
        differ = found["exits_that_differ"]
        yield Promise("traces|routes", "compact traces: samples that take another exit than in full", differ, "<=", 0.0)
    elif run == "million":
        for step in ("calibrate", "certify", "evaluate"):
            what = f"1,000,000 samples, 4 exits, 1,000 classes: {step}"
            yield Promise(f"traces|{step}|memory", f"{what}, MB of the whole process", found[step]["peak_mb"], "<=", 2000)
    elif run == "collecting":
        few, many = (found[name]["peak_mb"] for name in found if name.isdigit())
        yield Promise("traces|collect", "collect, 20,000 samples of 1,000 classes: MB above 2,000", many - few, "<=", 300)
