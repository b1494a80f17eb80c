"""Writes the tables of docs/measured/relevance.md from benchmarks/results/relevance.csv: python -m benchmarks.relevance.page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import fill, table
from benchmarks.relevance.runs import RELEVANCE

MAPS = ["map", "deletion share", "insertion share", "ms an image"]
EXPLAIN = [
    "exit that answers",
    "its stages, forward, ms",
    "explain, ms",
    "with relevance, ms",
    "added, times the forward pass",
]


def write_network(found: Mapping[str, Any]) -> list[str]:
    """Both tables of one network."""
    maps = [
        [name, *(_show_share(row[f"{what}_share"]) for what in ("deletion", "insertion")), _show_ms(row["ms"])]
        for name, row in found["maps"].items()
    ]
    grid = next(iter(found["maps"].values()))["grid"]
    last = str(len(found["explain"]) - 1)
    times = []
    for k, row in found["explain"].items():
        taken = [_show_ms(row[f"{name}_ms"]) for name in ("forward", "explain", "with_relevance")]
        times.append(["final" if k == last else k, *taken, _show_interval(row["ratio"])])
    return [
        f"**{found['title']}**: {found['images']} test images, features of exit 0 at {found['locations']} locations, maps judged at "
        f"{grid} cells.",
        "",
        *table(MAPS, maps),
        "",
        *table(EXPLAIN, times),
    ]


def _show_share(share: list[float | None]) -> str:
    value, error = share
    return "" if value is None else f"{value:.2f} ± {error:.2f}"


def _show_ms(ms: list[float]) -> str:
    return _show_interval(ms, 2 if ms[0] < 10 else 1)


def _show_interval(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def main() -> None:
    lines: list[str] = []
    for found in RELEVANCE.read().values():
        lines += [*write_network(found), ""]
    fill("relevance", lines[:-1])


if __name__ == "__main__":
    main()
