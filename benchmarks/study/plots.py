"""The plots of docs/results.md, as SVG."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.study.conditions import CONDITIONS, SWEPT
from benchmarks.study.promises import Rows

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
STATIC = ("static-10", "static-25", "static-50")
STYLES: dict[str, dict[str, Any]] = {
    "egt": {"lw": 4, "alpha": 0.6},
    "joint-context": {"ls": "--"},
    "both": {"ls": ":"},
}  # they overlap
SHOWN = ("average", "joint", "distilled", "joint-context", "egt", "both")


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "exitlens", "font.family": "sans-serif"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def plot_curves(rows: Rows, path: Path) -> bool:
    """Accuracy on test data along one common threshold, mean over seeds; whether there was anything to show."""
    shown = [key for key in SHOWN if key in rows]
    if not shown:
        return False
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(0.08, 1.05, 98)
    for colour, key in zip(COLOURS, shown, strict=False):
        curves = []
        for found in rows[key].values():
            xs, ys = zip(*sorted(found["common"]), strict=True)
            curves.append(np.where(grid < xs[0], np.nan, np.interp(grid, xs, ys)))
        style = STYLES.get(key, {})
        axes.plot(grid, 100 * np.mean(curves, axis=0), color=colour, label=CONDITIONS[key].title, **style)
    if "plain" in rows:
        axes.axhline(_final(rows, "plain"), color="#777777", ls="--", lw=1, label="plain backbone, at cost 1")
    points = [(mean(found["cost"][-1] for found in rows[key].values()), _final(rows, key)) for key in STATIC if key in rows]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, "s", color="#333333", ms=5, label="static networks of smaller width")
    axes.set_xlabel("mean cost (multiply-accumulates, plain backbone = 1)")
    axes.set_ylabel("accuracy on test data, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
    return True


def _final(rows: Rows, key: str) -> float:
    return 100 * mean(next(iter(found["tests"].values()))["accuracy"][-1] for found in rows[key].values())


def plot_sweep(folder: Path, path: Path) -> None:
    """What every loss trades: skill at exit 0 against accuracy of the final exit, along its weight."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, name in zip(COLOURS, SWEPT, strict=False):
        found = sorted((json.loads(p.read_text()) for p in folder.glob(f"{name}-*.json")), key=lambda f: float(f["alpha"]))
        if not found:
            continue
        final = [50 * sum(f[test]["accuracy"][-1] for test in ("agreeing", "disagreeing")) for f in found]
        skill = [f["agreeing"]["skill"][0] for f in found]
        first = [50 * sum(f[test]["accuracy"][0] for test in ("agreeing", "disagreeing")) for f in found]
        left.plot(skill, final, "o-", ms=4, color=colour, label=name)
        right.plot(skill, first, "o-", ms=4, color=colour, label=name)
        for axes, ys in ((left, final), (right, first)):
            for x, y, f in zip(skill, ys, found, strict=True):
                axes.annotate(f"{f['alpha']:g}", (x, y), textcoords="offset points", xytext=(3, 3), fontsize=6)
    left.set_ylabel("final exit's accuracy, %\n(mean of both backgrounds, validation)")
    right.set_ylabel("exit 0's accuracy, %\n(mean of both backgrounds, validation)")
    for axes in (left, right):
        axes.set_xlabel("attention skill at exit 0 (numbers: weight)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    _save(figure, path)
