"""What the documentation's site promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise
from benchmarks.site.runs import VERSION


def list_promises(run: str, found: dict[str, Any]) -> Iterator[Promise]:
    """The promises of one page."""
    for scheme, scores in found["schemes"].items():
        for category, score in scores.items():
            what = f"page {run}, {scheme}: {category} by Lighthouse {VERSION}"
            yield Promise(f"site|{run}|{scheme}|{category}", what, score, ">=", 95)
