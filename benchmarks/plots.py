"""Plots for pages: small SVG files that are the same whenever they are drawn."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")  # Okabe and Ito's
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "exitlens",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
}


def save_svg(figure: Figure, path: Path) -> None:
    """Writes a figure with text as text and coordinates to a hundredth of a point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", path.read_text())
    path.write_text(re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text))


def strip_axes(axes: Axes) -> None:
    """A light grid, and no frame at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
