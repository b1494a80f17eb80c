"""Plots are small, and the same whenever they are drawn."""

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from benchmarks.markdown import ROOT
from benchmarks.plots import save_svg, strip_axes


def test_a_plot_is_the_same_file_again_with_short_numbers(tmp_path):
    for name in ("a", "b"):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1 / 3, 2 / 3], [1, 2], label="line")
        axes.legend()
        strip_axes(axes)
        save_svg(figure, tmp_path / name)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    ElementTree.fromstring(text)
    assert ">line</text>" in text
    assert not re.search(r"\d\.\d{3}", text)


def test_committed_plots_are_small():
    plots = sorted((ROOT / "docs").rglob("*.svg"))
    assert len(plots) > 5
    assert all(plot.stat().st_size < 60_000 for plot in plots)
