import re
from xml.etree import ElementTree

import pytest

from exitlens.delivery import plots
from exitlens.display import pick_exit_colour
from tests.delivery.subjects import make_subject

pytestmark = pytest.mark.slow


def test_plots_take_ink_and_paper_from_the_page_and_exits_keep_their_colour(tiny_set):
    subjects = [make_subject(name, tiny_set) for name in ("one", 'the "other"')]
    series = [plots.Series(s.name, s.reports["test"], s.faithfulness["test"]) for s in subjects]
    bars = {plots.plot_exit_shares: 3, plots.plot_accuracy_cost: 3, plots.plot_consistency: 2, plots.plot_deletion: 3}
    for draw, exits in bars.items():
        svg = draw(series)
        ElementTree.fromstring(svg)
        drawn = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
        colours = {pick_exit_colour(k, 3).lower() for k in range(exits)}
        assert colours <= drawn <= colours | {"#8a8a8a", "#ffffff", "#000000"}
        assert "currentColor" in svg
        assert "the &quot;other&quot;" in svg
        assert plots.INK not in svg
        assert plots.PAPER not in svg
