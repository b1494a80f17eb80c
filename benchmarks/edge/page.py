"""Writes the tables of docs/guides/edge.md from benchmarks/results/edge.csv: python -m benchmarks.edge.page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.edge.promises import list_promises
from benchmarks.edge.runs import EDGE
from benchmarks.markdown import fill, table
from benchmarks.promises import add_reasons

SPEED = [
    "network",
    "batch",
    "PyTorch, tuned",
    "plain, ONNX Runtime",
    "runtime",
    "its ideal",
    "cascade",
    "runtime on OpenVINO",
]
SIZES = ("1", "3", "64")
ROWS = ("exits, PyTorch", "plain, ONNX Runtime", "runtime", "ideal", "cascade", "runtime, OpenVINO")


def write_speed(runs: Mapping[str, Any]) -> Iterator[str]:
    """Milliseconds a sample."""
    rows = []
    for run, found in runs.items():
        if run.startswith("speed-"):
            for size, one in found.items():
                ms = one["ms"] | {"ideal": one["ideal_ms"]}
                rows.append([run.removeprefix("speed-"), size, *(_show(ms[name]) for name in ROWS)])
    if rows:
        machine = next(found["1"]["machine"] for run, found in runs.items() if run.startswith("speed-"))
        yield f"Milliseconds a sample, median and 95 % interval; 50 / 30 / 0 / 20 % leave at exits 0 to 3. {machine['threads']} threads."
        yield ""
        yield from table(SPEED, rows)


def write_decisions(found: Mapping[str, Any]) -> Iterator[str]:
    """Other labels or exits than the library's, the worst of the batch sizes."""
    rows = []
    for name, sizes in found.items():
        if isinstance(sizes, dict):
            worst = [max(one[key] for one in sizes.values()) for key in ("others", "others_near", "map_gap")]
            rows.append([name, f"{worst[0]}", f"{worst[1]}", f"{worst[2]:.1g}"])
    yield f"{found['samples']:,} test images of the demo, batches of {', '.join(SIZES)}: answers with another label or exit than the library's."
    yield ""
    yield from table(
        ["answered by", "others", "others, a score within 1e-5 of its threshold", "furthest attention map"], rows
    )


def write_promises(runs: Mapping[str, Any]) -> Iterator[str]:
    """What was promised and measured."""
    promises = add_reasons(one for run in runs if run != "decisions" for one in list_promises(run, runs[run]))
    rows = []
    for one in promises:
        note = "" if one.is_kept else f"missed: {one.reason}" if one.reason else "missed"
        half = f" ± {one.half:.2g}" if one.half is not None else ""
        rows.append([one.what, f"{one.measured:.3g}{half}", f"{'≤' if one.sense == '<=' else '≥'} {one.bar:g}", note])
    yield from table(["what", "measured", "promised", ""], rows)


def _show(values: list[float]) -> str:
    digits = 3 if values[0] < 1 else 2 if values[0] < 10 else 1
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def main() -> None:
    runs = EDGE.read()
    fill("edge-speed", list(write_speed(runs)))
    fill("edge-decisions", list(write_decisions(runs["decisions"])))
    fill("edge-promises", list(write_promises(runs)))


if __name__ == "__main__":
    main()
