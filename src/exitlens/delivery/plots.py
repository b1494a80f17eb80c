"""The report's plots as SVG text in the page's own ink: colours stand for exits, line styles and hatching for networks.

Both are encoded twice (colour and place, style and legend), so no plot depends on seeing colours. Every axis has units.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from exitlens.display import QUOTES, choose_text_colour, pick_exit_colour
from exitlens.types.outputs import exit_name
from exitlens.workflow.evaluation import Report
from exitlens.workflow.faithfulness import Faithfulness

INK, PAPER = "#010203", "#fdfcfb"  # placeholders for the page's ink and paper, which depend on light or dark mode
LINES, MARKERS, HATCHES = ("-", "--", ":"), ("o", "s", "^"), ("", "////", "....")
MARK_NAMES = ("dots", "squares", "triangles")
MOST = len(LINES)  # networks that a plot can tell apart
LONGEST = 24  # letters of a name
WIDTH = 4.7  # inches, legible on a phone
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "exitlens",
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid", "lines")},
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "hatch.linewidth": 1.2,
}


@dataclass(frozen=True)
class Series:
    """One network's results under its name in every legend."""

    name: str
    report: Report
    faithfulness: Faithfulness | None = None

    @property
    def label(self) -> str:
        """The name, shortened if it would leave no room for the plot."""
        return self.name if len(self.name) <= LONGEST else self.name[: LONGEST - 1] + "…"


def plot_accuracy_cost(series: Sequence[Series], plain_accuracy: float | None = None) -> str:
    """Draws accuracy against cost: the frontier of each network, each exit alone, and the chosen policy."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.2)
        for line, marker, network in zip(LINES, MARKERS, series, strict=False):
            xs, ys = zip(*network.report.curve, strict=True)
            axes.plot(xs, [100 * y for y in ys], line, color=INK, lw=1.6, label=f"{network.label}: best thresholds")
            for row in network.report.exits:
                if row.accuracy is not None:
                    colour = pick_exit_colour(row.exit, len(network.report.exits))
                    axes.plot(row.cost, 100 * row.accuracy, marker, ms=8, mec=PAPER, color=colour, zorder=3)
            if network.report.accuracy is not None:
                fill, label = INK if line == "-" else PAPER, f"{network.label}: chosen policy"
                at = network.report.cost, 100 * network.report.accuracy
                axes.plot(*at, marker="*", ms=15, mfc=fill, mec=INK, ls="none", label=label, zorder=4)
        if plain_accuracy is not None:
            axes.axhline(100 * plain_accuracy, color=INK, alpha=0.6, ls="-.", lw=1, label="plain backbone, no exits")
        axes.set_xlabel("mean cost (plain backbone = 1)")
        axes.set_ylabel("accuracy (%)")
        axes.set_xlim(left=0)
        figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower left")
        _exit_legend(figure, len(series[0].report.exits))
    results = "; ".join(f"{s.name}: {_percent(s.report.accuracy)} at cost {s.report.cost:.2f}" for s in series)
    return _svg(figure, f"Accuracy against mean cost. The chosen policy reaches, {results}")


def plot_exit_shares(series: Sequence[Series]) -> str:
    """Draws the share of samples that each exit answers, with a bar for each network."""
    count = len(series[0].report.exits)
    with mpl.rc_context(STYLE):
        figure, axes = _figure(1.0 + 0.55 * len(series))
        for row, network in enumerate(series):
            left = 0.0
            for k, share in enumerate(network.report.exit_shares):
                colour = pick_exit_colour(k, count)
                axes.barh(row, 100 * share, left=left, color=colour, edgecolor=PAPER)
                if share > 0.06:
                    ink = choose_text_colour(colour)
                    axes.text(
                        left + 50 * share, row, f"{100 * share:.0f}", color=ink, ha="center", va="center", weight="bold"
                    )
                left += 100 * share
        axes.set_yticks(range(len(series)), [network.label for network in series])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the test samples answered there (%)")
        _exit_legend(figure, count)
    results = "; ".join(f"{s.name}: {', '.join(_percent(v, 0) for v in s.report.exit_shares)}" for s in series)
    return _svg(figure, f"Share of samples answered by exit, first to final. {results}")


def plot_consistency(series: Sequence[Series]) -> str:
    """Draws Pearson's CC of every early exit's map with the final map; a line across each bar is the null."""
    rows = [(network.label, [row.consistency["cc"] for row in network.report.exits[:-1]]) for network in series]
    bars = [(name, [cc["value"] for cc in row], [cc["null"] for cc in row]) for name, row in rows]
    unit, control = "correlation with the final map", "null: another sample's map"
    alt = "Correlation of early exits' attention maps with the final map"
    return _bars(bars, len(series[0].report.exits), unit, control, alt)


def plot_deletion(series: Sequence[Series]) -> str:
    """Draws the drop in the answer's probability after deleting the map's top cells; lines are for random cells."""
    checked = [(network.label, network.faithfulness) for network in series if network.faithfulness is not None]
    bars = [(name, checks.deletion, checks.deletion_random) for name, checks in checked]
    alt = "Drop in the answer's probability when the most attended 20 % of places are blanked"
    return _bars(bars, len(series[0].report.exits), "drop in probability", "random places", alt)


def _bars(
    bars: Sequence[tuple[str, Sequence[float], Sequence[float]]], num_exits: int, unit: str, control: str, alt: str
) -> str:
    """Draws a group of bars for each exit in its colour: a bar for each network, with its hatching and its control.

    ``bars`` are each network's name, its values and those of the control, by exit.
    """
    names, values, controls = zip(*bars, strict=True)
    width, count = 0.8 / len(names), len(values[0])
    with mpl.rc_context(STYLE):
        figure, axes = _figure(3.4)
        for i, (row, control_row) in enumerate(zip(values, controls, strict=True)):
            for k, (value, level) in enumerate(zip(row, control_row, strict=True)):
                x, colour = k + (i - (len(names) - 1) / 2) * width, pick_exit_colour(k, num_exits)
                axes.bar(x, value, width * 0.9, **_fill(i, colour))
                axes.plot([x - width / 2, x + width / 2], [level] * 2, color=INK, lw=2.5)
        axes.set_xticks(range(count), [exit_name(k, num_exits) for k in range(count)])
        axes.set_ylabel(unit)
        axes.axhline(0, color=INK, lw=0.8)
        marks: list[Any] = [Patch(label=name, **_fill(i, "#8a8a8a")) for i, name in enumerate(names)]
        figure.legend(handles=[*marks, Line2D([], [], color=INK, lw=2.5, label=control)], loc="outside upper left")
    results = "; ".join(f"{n}: {', '.join(f'{v:.2f}' for v in row)}" for n, row in zip(names, values, strict=True))
    return _svg(figure, f"{alt}, by exit. {results}; {control}: {', '.join(f'{v:.2f}' for v in controls[0])}")


def _fill(network: int, colour: str) -> dict[str, Any]:
    if network == 0:
        return {"facecolor": colour, "edgecolor": colour}
    return {"facecolor": PAPER, "edgecolor": colour, "hatch": HATCHES[network % MOST], "linewidth": 1.4}


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _exit_legend(figure: Figure, count: int) -> None:
    marks = [
        Line2D([], [], ls="none", marker="o", ms=8, color=pick_exit_colour(k, count), label=exit_name(k, count))
        for k in range(count)
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=min(count, 5), handletextpad=0.1)


def _svg(figure: Figure, alt: str) -> str:
    """Renders the figure as an accessible ``<svg>`` element that takes ink, paper and font from the page."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[\w.]+_\d+"', "<g", text)  # ids must be unique in the page
    prefix = hashlib.sha256(alt.encode()).hexdigest()[:8]
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>x{prefix}-", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt, QUOTES)}" ', 1)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"
