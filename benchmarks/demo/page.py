"""Writes the demo's tables where a page has their markers, and keeps the demo's JSON and gallery.

Usage: python -m benchmarks.demo.page [--run runs/demo-full] [--page FILE ...]

The markers are ``<!-- demo: ... -->`` (everything) and ``<!-- results: ... -->`` (the README's table), in the README or under
docs, or in the pages that are named.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import ROOT, fill, table
from benchmarks.store import RESULTS

ROWS = (  # title, test set, measure, digits, scale
    ("accuracy, background agrees (%)", "agreeing", "accuracy", 1, 100),
    ("accuracy, background says nothing (%)", "disagreeing", "accuracy", 1, 100),
    ("attention skill over the shuffled-image null", "agreeing", "skill", 2, 1),
    ("KL(final ‖ exit), nats", "agreeing", "kl", 2, 1),
    ("attention on the garment (%)", "agreeing", "energy_in_mask", 0, 100),
    ("deletion drop", "agreeing", "deletion", 2, 1),
    ("deletion drop, random cells", "agreeing", "deletion_random", 2, 1),
)
SUMMARY = (
    ("accuracy (%)", "agreeing", "accuracy", 1, 100),
    ("attention on the garment (%)", "agreeing", "energy_in_mask", 0, 100),
    ("agreement with the final exit's attention (0: chance, 1: same)", "agreeing", "skill", 2, 1),
    ("truth of the attention (0: chance, 1: as good as trying every cell)", "agreeing", "deletion_share", 2, 1),
)


def exits_table(result: dict[str, Any], chosen: Sequence[tuple[str, str, str, int, int]]) -> list[str]:
    """Every exit without and with EGT."""
    exits = len(result["egt"]["agreeing"]["accuracy"])
    rows = []
    for title, test, measure, digits, scale in chosen:
        pairs = zip(result["baseline"][test][measure], result["egt"][test][measure], strict=True)
        cells = [f"{scale * a:.{digits}f} → **{scale * b:.{digits}f}**" for a, b in pairs]
        rows.append([title, *cells, *[""] * (exits - len(cells))])
    return table(["", *(f"exit {k}" for k in range(exits - 1)), "final"], rows)


def speed_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for size in (1, 64):
        one = result["speed"][f"batch_{size}"]
        for title, s in ((f"batch {size}", one), (f"batch {size}, stricter policy", one["at_half_point"])):
            times = f"**{s['speedup']:.2f}** ({s['low']:.2f} to {s['high']:.2f})"
            rows.append([title, times, f"{100 * s['accuracy_drop']:.2f}", f"{100 * s['cost']:.0f} %"])
    return table(["against the plain backbone", "times faster", "accuracy lost (points)", "cost (MACs)"], rows)


def write_part(result: dict[str, Any]) -> list[str]:
    """Both tables, with what one has to know to read them."""
    plain = 100 * result["plain"]["agreeing"]["accuracy"][0]
    return [
        f"One run of `make demo-full` (seed {result['seed']}, {result['seconds']:.0f} s on 2 cores): garments on coloured backgrounds whose "
        "colour names the class in 80 % of the training scenes; 3,000 test scenes. Without → **with EGT**:",
        "",
        *exits_table(result, ROWS),
        "",
        f"The plain backbone, trained in the same way without exits, has {plain:.1f} %. Adaptive inference with EGT, on the clock, medians "
        "(quartiles), thresholds certified on 2,000 other scenes to lose at most one point (stricter: half a point) with 90 % confidence "
        "against the final exit:",
        "",
        *speed_table(result),
        "",
        f"A training step with EGT takes {result['step_time_ratio']:.3f} times the step without; prediction with attention maps "
        f"{result['attention_time_ratio']:.3f} times prediction without. All numbers: `benchmarks/results/demo.json`; every promise beside "
        "its measurement: `python -m benchmarks.check --demo`. Accuracies of one seed carry about ±0.6 points of sampling error.",
    ]


def write_summary(result: dict[str, Any]) -> list[str]:
    """The README's table, and the time."""
    plain = 100 * result["plain"]["agreeing"]["accuracy"][0]
    before, after = (100 * result[run]["disagreeing"]["accuracy"][0] for run in ("baseline", "egt"))
    timed = result["speed"]["batch_64"]
    return [
        "`make demo-full`: garments on coloured backgrounds that give the class away in 80 % of the scenes; 3,000 test scenes. Without EGT → "
        "**with EGT**:",
        "",
        *exits_table(result, SUMMARY),
        "",
        f"The plain backbone reaches {plain:.1f} %. Where backgrounds say nothing about the class, exit 0 has {before:.1f} without and "
        f"{after:.1f} % with EGT, in one run ([more](docs/measured/truth.md)). With thresholds certified (90 % confidence) to cost at most one point, batches of 64 run "
        f"**{timed['speedup']:.1f} times faster** than the plain backbone and lose {100 * timed['accuracy_drop']:.1f} points.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-full"))
    parser.add_argument("--page", type=Path, nargs="*", metavar="FILE")
    args = parser.parse_args()
    shutil.copy(args.run / "result.json", RESULTS / "demo.json")
    shutil.copy(args.run / "gallery.png", ROOT / "docs" / "measured" / "gallery.png")
    result = json.loads((RESULTS / "demo.json").read_text())
    fill("demo", write_part(result), args.page)
    fill("results", write_summary(result), args.page)


if __name__ == "__main__":
    main()
