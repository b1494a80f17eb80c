"""Writes the tables of docs/guarantees.md from benchmarks/results/guarantees. Run after guarantees.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "guarantees"
PAGE = ROOT / "docs" / "guarantees.md"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def parts(prefix: str) -> dict[str, dict[str, Any]]:
    return {path.stem.removeprefix(prefix): json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{prefix}*.json"))}


def worst(sets: dict[str, list[dict[str, float]]], label: str, delta: float) -> float:
    return max(row["violations"] for row in sets[label] if row["delta"] == delta)


def violations() -> list[str]:
    lines = [
        "Share of calibrations after which a risk was above its limit (the worst over limits of 0.5, 1, 2 and 5 %), for δ = 0.05, 0.1, 0.2.",
        "Splits: 1,000 random draws of 2,000 calibration samples from a real trace, the risk taken on all other samples. Synthetic: 2,000 draws "
        "of 1,000 samples from three populations whose risks are known.",
        "",
        "| | accuracy drop | disagreement | divergence | all three |",
        "| --- | --- | --- | --- | --- |",
    ]
    real = parts("splits-").items()
    lines += [_row(f"{name}, {one['splits']:,} splits of {one['samples']:,}", one["sets"], "") for name, one in real]
    synthetic = read("synthetic")
    title = f"a third of {synthetic['draws']:,} draws"
    lines += [_row(f"synthetic {k}, {title}", synthetic["sets"], f"population {k}, ") for k in (0, 1, 2)]
    broken = synthetic["broken"]
    lines.append(
        _row(f"*one step too far*, synthetic 1, a third of {broken['draws']} draws", broken["sets"], "population 1, ")
    )
    return lines


def _row(name: str, sets: dict[str, list[dict[str, float]]], prefix: str) -> str:
    labels = [prefix + label for label in ("accuracy drop", "disagreement", "divergence", "all three")]
    cells = [", ".join(f"{worst(sets, label, delta):.3f}" for delta in (0.05, 0.1, 0.2)) for label in labels]
    return f"| {name} | {' | '.join(cells)} |"


def savings() -> list[str]:
    found = parts("saving-")
    labels = list(next(iter(found.values()))["costs"])
    lines = [
        "",
        "Mean cost at δ = 0.1, accuracy drop at most 1 %, 2,000 calibration samples; in brackets the saving as a share of what the best "
        "thresholds save that the *test* samples themselves would choose (hindsight), and how often the drop on the test samples was above 1 %.",
        "",
        "| | " + " | ".join(found) + " |",
        "| --- |" + " --- |" * len(found),
    ]
    for label in labels:
        cells = [
            f"{one['costs'][label]:.3f} ({100 * one['share_of_hindsight'][label]:.0f} %), above in {100 * one['broken'][label]:.0f} %"
            for one in found.values()
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    timing = read("time")
    seconds = sorted(timing["seconds"])
    lines += [
        "",
        f"{timing['samples']:,} samples, {timing['exits']} exits, three risks: {seconds[len(seconds) // 2]:.2f} s on one core (median of "
        f"{len(seconds)}; {seconds[0]:.2f} to {seconds[-1]:.2f}), {timing['peak_mb_of_the_process']:,} MB for the whole process, PyTorch included.",
    ]
    return lines


def gates() -> list[str]:
    lines = [
        "Cost on samples that did not choose the policy, limits on divergence at 20, 40, 60 and 80 % of exit 0's mean divergence and 2 % on accuracy; "
        "means over splits, in brackets the divergence that was measured. Change: of the cost by the gate, with its standard error.",
        "",
        "| | limit | without gate | with gate | change of cost | gate kept |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in parts("gate-").items():
        for row in found["rows"]:
            change = f"{100 * row['cost_change']:+.1f} ± {100 * row['cost_change_error']:.1f} %"
            plain, gated = (f"{row[f'cost{s}']:.3f} ({row[f'divergence{s}']:.4f})" for s in ("", "_gated"))
            lines.append(f"| {name} | {row['limit']:.4f} | {plain} | {gated} | {change} | {100 * row['used']:.0f} % |")
    return lines


def drifts() -> list[str]:
    found = read("drift")
    lines = [
        f"The demo's network, calibrated with a certificate; then backgrounds agree with the class in 10 % instead of 80 % of the scenes. {found['runs']} runs each:",
        "",
        "| | warned within 500 samples | median delay |",
        "| --- | --- | --- |",
    ]
    for key, one in found.items():
        if isinstance(one, dict) and "warned" in one:
            lines.append(
                f"| changes {key}{' samples' if key[-1] == '0' else ''} | {100 * one['warned']:.1f} % | {one['median_delay']} |"
            )
    lines.append(
        f"| never changes, 10,000 samples | false alarms in {100 * found['unchanged, 10,000 samples']['alarms']:.1f} % of the runs | |"
    )
    return lines


def replace(marker: str, lines: list[str]) -> None:
    start, end = f"<!-- {marker}: written by benchmarks/guarantees/page.py -->", f"<!-- end of {marker} -->"
    page = re.sub(
        f"{re.escape(start)}.*?{re.escape(end)}",
        lambda _: "\n".join([start, "", *lines, "", end]),
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    PAGE.write_text(page)


def main() -> None:
    replace("results", [*violations(), *savings()])
    replace("gate", gates())
    replace("drift", drifts())


if __name__ == "__main__":
    main()
