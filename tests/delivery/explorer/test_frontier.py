from xml.etree import ElementTree

import exitlens as xl
from exitlens.delivery.explorer.frontier import BOTTOM, LEFT, RIGHT, TOP, draw_frontier
from tests.conftest import random_trace


def test_the_plot_holds_everything_and_has_round_ticks():
    report = xl.evaluate(random_trace(k=3), xl.Policy((0.5, 0.5)))
    drawn = ElementTree.fromstring(draw_frontier(report))
    circles = [e for e in drawn.iter() if e.tag == "circle"]
    assert len(circles) == 4
    for circle in circles:
        assert LEFT <= float(circle.get("cx")) <= RIGHT
        assert TOP - 0.1 <= float(circle.get("cy")) <= BOTTOM + 0.1
    heights = [float(pair.split(",")[1]) for pair in drawn.find("polyline").get("points").split()]
    assert heights == sorted(heights, reverse=True)  # the best thresholds: dearer ones are more accurate
    assert min(heights) <= min(float(circle.get("cy")) for circle in circles) + 0.1  # nothing lies above the line's end
    labels = [e.text for e in drawn.iter("text") if e.get("text-anchor") == "end"]
    assert len(labels) >= 2
    assert all(len(label) <= 4 for label in labels)
    assert f"{100 * report.accuracy:.1f} % at cost {report.cost:.3f}" in drawn.get("aria-label")
