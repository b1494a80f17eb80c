"""The chart of docs/measured/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots import save_svg

NAMES = {"small": "our small network, 40 px", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "deit_tiny": "DeiT-tiny"}
MIXED = "50/30/0/20"
BARS = {  # rows of the chart: name, label, colour (Okabe-Ito)
    "plain, tuned": ("plain backbone, tuned", "#999999"),
    "plain, compiled": ("plain backbone, tuned and compiled", "#555555"),
    f"earlyon, {MIXED}, same formats": ("earlyon 0.3.0, same formats", "#E69F00"),
    f"exits, {MIXED}, whole batches": ("ours, whole batches", "#56B4E9"),
    f"exits, {MIXED}": ("ours, tuned", "#0072B2"),
    f"exits, {MIXED}, compiled": ("ours, tuned and compiled", "#009E73"),
}
WIDTH = 0.82 / len(BARS)
LABEL_HEIGHT = 0.35


def plot_speed(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Batch 32 on two cores: how many times faster than plain as PyTorch runs it, with the ideal as a mark."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for j, (key, (label, colour)) in enumerate(BARS.items()):
        for i, one in enumerate(found.values()):
            row = one["batches"]["32"]["rows"].get(key)
            if row is not None:
                _draw_bar(axes, i + (j - (len(BARS) - 1) / 2) * WIDTH, row, colour, label if i == 0 else "")
    axes.plot([], [], color="#D55E00", lw=2, label="ideal: stage times x shares")
    axes.axhline(1, color="#222222", lw=0.8)
    axes.set_xticks(range(len(found)), [NAMES[name] for name in found])
    axes.set_ylabel("times faster than the plain backbone\nas PyTorch runs it (batch 32)")
    axes.set_title(f"Exit shares {MIXED}, two cores, float32; medians with 95 % intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    save_svg(figure, path)


def _draw_bar(axes: Axes, x: float, row: dict[str, Any], colour: str, label: str) -> None:
    value, low, high = row["speedup"]
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.bar(x, value, WIDTH * 0.92, color=colour, yerr=error, ecolor="#222222", label=label or None)
    top = high
    if "ideal_ms" in row:
        ideal = value * row["ms"][0] / row["ideal_ms"]
        axes.plot([x - WIDTH / 2, x + WIDTH / 2], [ideal, ideal], color="#D55E00", lw=2)
        top = max(high, ideal) + 0.03 if ideal < high + LABEL_HEIGHT else high  # the figure is not drawn over the mark
    axes.annotate(f"{value:.1f}", (x, top), ha="center", va="bottom", fontsize=7)
