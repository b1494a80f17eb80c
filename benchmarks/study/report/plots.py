"""The plots of the study, as SVG."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.plots import COLOURS, save_svg, strip_axes
from benchmarks.store import Store
from benchmarks.study.conditions import CONDITIONS, SWEPT, find_sweep
from benchmarks.study.report.figures import PLAIN, STATIC, Rows

STYLES: dict[str, dict[str, Any]] = {
    "egt": {"lw": 4, "alpha": 0.6},
    "joint-context": {"ls": "--"},
    "both": {"ls": ":"},
}  # they overlap
TESTS = ("agreeing", "disagreeing")
SHOWN = ("average", "joint", "distilled", "joint-context", "egt", "both")


def plot_curves(rows: Rows, path: Path) -> bool:
    """Accuracy on test data along one common threshold, mean over seeds; whether there was anything to show."""
    shown = {key: colour for key, colour in zip(SHOWN, COLOURS, strict=False) if key in rows}
    if not shown:
        return False
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(0.08, 1.05, 98)
    for key, colour in shown.items():
        curves = []
        for found in rows[key].values():
            xs, ys = zip(*sorted(zip(found["common"]["cost"], found["common"]["accuracy"], strict=True)), strict=True)
            curves.append(np.where(grid < xs[0], np.nan, np.interp(grid, xs, ys)))
        style = STYLES.get(key, {})
        axes.plot(grid, 100 * np.mean(curves, axis=0), color=colour, label=CONDITIONS[key].title, **style)
    if PLAIN in rows:
        axes.axhline(_final(rows, PLAIN), color="#777777", ls="--", lw=1, label="plain backbone, at cost 1")
    points = [(mean(found["cost"][-1] for found in rows[key].values()), _final(rows, key)) for key in STATIC if key in rows]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, "s", color="#333333", ms=5, label="static networks of smaller width")
    axes.set_xlabel("mean cost (multiply-accumulates, plain backbone = 1)")
    axes.set_ylabel("accuracy on test data, %")
    strip_axes(axes)
    axes.legend(frameon=False, fontsize=8)
    save_svg(figure, path)
    return True


def _final(rows: Rows, key: str) -> float:
    return 100 * mean(next(iter(found["tests"].values()))["accuracy"][-1] for found in rows[key].values())


def plot_sweep(store: Store, path: Path) -> bool:
    """What every loss trades: skill at exit 0 against accuracy, along its weight; whether there was anything to show."""
    sweeps = {name: runs for name in SWEPT if (runs := find_sweep(store, name))}
    if not sweeps:
        return False
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for colour, (name, runs) in zip(COLOURS, sweeps.items(), strict=False):
        skill = [found["agreeing"]["skill"][0] for found in runs]
        for axes, exit_index in zip(panels, (-1, 0), strict=True):
            ys = [50 * sum(found[test]["accuracy"][exit_index] for test in TESTS) for found in runs]
            axes.plot(skill, ys, "-", color=colour, label=name)
            axes.scatter(skill, ys, [_size(found["alpha"]) for found in runs], color=colour, zorder=3)
    for axes, which in zip(panels, ("final exit", "exit 0"), strict=True):
        axes.set_ylabel(f"{which}'s accuracy, %\n(mean of both backgrounds, validation)")
        axes.set_xlabel("attention skill at exit 0\n(dots grow with the weight: 0.1, 0.3, 1, 3, 10)")
        strip_axes(axes)
    panels[0].legend(frameon=False, fontsize=8)
    save_svg(figure, path)
    return True


def _size(alpha: float) -> float:
    """Of a dot, in square points: grows with the logarithm of the weight."""
    return 10.0 if alpha == 0 else 34 + 24 * math.log10(alpha)
