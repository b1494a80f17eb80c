"""The report's plots, as SVG text: colour-blind-safe colours (Okabe-Ito), units on every axis, a legend on each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exitlens.workflow.evaluation import Report
from exitlens.workflow.faithfulness import Faithfulness

BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#777777", "#009E73"
COLOURS = (BLUE, ORANGE, GREEN)
EXIT_COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#333333", "#CC79A7", "#F0E442", "#009E73", "#D55E00")


@dataclass(frozen=True)
class Series:
    """One network's results under its name in every legend."""

    name: str
    report: Report
    faithfulness: Faithfulness | None = None


def exit_names(count: int) -> list[str]:
    """``exit 0 … exit K-2, final``."""
    return [*(f"exit {k}" for k in range(count - 1)), "final"]


def _figure(width: float = 6.4, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "exitlens", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def accuracy_cost(series: Sequence[Series], plain_accuracy: float | None = None) -> str:
    """Accuracy against cost: the frontier of each network, its exits alone, and the chosen policy."""
    figure, axes = _figure(height=4.0)
    for colour, one in zip(COLOURS, series, strict=False):
        xs, ys = zip(*one.report.curve, strict=True)
        axes.plot(xs, [100 * y for y in ys], color=colour, lw=1.8, label=f"{one.name}: best thresholds")
        exits = [(row.cost, 100 * row.accuracy) for row in one.report.exits if row.accuracy is not None]
        axes.plot(*zip(*exits, strict=True), "o", mfc="none", color=colour, label=f"{one.name}: each exit alone")
        if one.report.accuracy is not None:
            chosen = (one.report.cost, 100 * one.report.accuracy)
            axes.plot(*chosen, "*", ms=15, mec="white", color=colour, label=f"{one.name}: chosen policy")
    if plain_accuracy is not None:
        axes.axhline(100 * plain_accuracy, color=GREY, ls="--", lw=1, label="plain backbone, no exits")
    axes.set_xlabel("mean cost (fraction of the plain backbone's multiply-accumulates)")
    axes.set_ylabel("accuracy (%)")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _svg(figure)


def exit_shares(series: Sequence[Series]) -> str:
    """Which share of the images each exit answers, one bar a network."""
    figure, axes = _figure(height=0.9 + 0.6 * len(series))
    names = exit_names(len(series[0].report.exits))
    for row, one in enumerate(series):
        left = 0.0
        for k, share in enumerate(one.report.exit_shares):
            colour = EXIT_COLOURS[k % len(EXIT_COLOURS)]
            axes.barh(row, 100 * share, left=left, color=colour, label=names[k] if row == 0 else None)
            if share > 0.05:
                dark = k % len(EXIT_COLOURS) in (1, 3)
                axes.text(left + 50 * share, row, f"{100 * share:.0f}", ha="center", va="center", color="w" if dark else "k")
            left += 100 * share
    axes.set_yticks(range(len(series)), [one.name for one in series])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("share of the test images answered there (%)")
    axes.legend(fontsize=8, frameon=False, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def consistency(series: Sequence[Series]) -> str:
    """Pearson CC of every early exit's map with the final map; a grey line a bar for the shuffled-image null."""
    figure, axes = _figure()
    early = len(series[0].report.exits) - 1
    width = 0.8 / len(series)
    for i, (colour, one) in enumerate(zip(COLOURS, series, strict=False)):
        rows = [row.consistency["cc"] for row in one.report.exits[:-1]]
        places = [k + (i - (len(series) - 1) / 2) * width for k in range(early)]
        axes.bar(places, [r["value"] for r in rows], width * 0.92, color=colour, label=one.name)
        for place, row in zip(places, rows, strict=True):
            label = "shuffled-image null" if i == 0 and place == places[0] else None
            axes.plot([place - width / 2, place + width / 2], [row["null"]] * 2, color="k", lw=2, label=label)
    axes.set_xticks(range(early), exit_names(early + 1)[:-1])
    axes.set_ylabel("correlation with the final map (1 = same)")
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _svg(figure)


def deletion(series: Sequence[Series]) -> str:
    """Drop in the answer's probability after deleting the map's top cells, against random cells."""
    figure, axes = _figure()
    count = len(series[0].report.exits)
    width = 0.8 / len(series)
    for i, (colour, one) in enumerate(zip(COLOURS, series, strict=False)):
        if one.faithfulness is None:
            continue
        places = [k + (i - (len(series) - 1) / 2) * width for k in range(count)]
        axes.bar(places, one.faithfulness.deletion, width * 0.92, color=colour, label=one.name)
        for place, value in zip(places, one.faithfulness.deletion_random, strict=True):
            label = "random cells" if i == 0 and place == places[0] else None
            axes.plot([place - width / 2, place + width / 2], [value] * 2, color="k", lw=2, label=label)
    axes.set_xticks(range(count), exit_names(count))
    axes.set_ylabel("drop in probability (deletion of 20 % of cells)")
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _svg(figure)
