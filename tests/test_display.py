import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.display import (
    choose_text_colour,
    contrast,
    html_table,
    map_svg,
    names_html,
    pick_class_colour,
    pick_exit_colour,
    shade_names,
)
from tests.conftest import random_trace


def read_cells(page):
    """The text of every cell of a page, all of whose elements have to be closed."""
    elements = ET.fromstring(f"<p>{page}</p>").iter()
    return ["".join(cell.itertext()) for cell in elements if cell.tag in ("td", "th", "caption")]


def test_cells_are_escaped():
    page = html_table(["<b>"], [["a & b"], ["</table><script>"]], "x < y")
    assert read_cells(page) == ["x < y", "<b>", "a & b", "</table><script>"]


def test_a_map_by_hand():
    attention = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    root = ET.fromstring(map_svg(Image.new("RGB", (30, 20), "red"), attention, 2 * attention, 'a "quoted" <label>'))
    cells = [e for e in root if e.tag.endswith("rect")]
    assert root.get("aria-label") == 'a "quoted" <label>'
    assert len(cells) == 6
    assert [float(cells[1].get(name)) for name in ("x", "y", "width", "height")] == [10, 0, 10, 10]
    assert cells[0][0].text == "row 0, column 0: 50.0 % of the attention, evidence +1.000"
    assert float(cells[0].get("fill-opacity")) > float(cells[1].get("fill-opacity")) > float(cells[3].get("fill-opacity"))


def test_values_show_themselves(net, images, tiny_set):
    net.describe(classes=("w", "x", "<y>", "z"), preprocess=tiny_set.preprocess)
    trace = xl.collect(net, tiny_set)
    policy = xl.calibrate(trace, max_accuracy_drop=0.1)
    why = xl.explain(net, images[0], policy)
    for value, words in (
        (net, ["ExitNet(TinyNet, 3 exits", "after"]),
        (trace, ["Trace(32 labelled samples, 3 exits, 4 classes", "divergence from final"]),
        (policy, ["threshold (max_probability)", "final", "answers the rest"]),
        (xl.evaluate(trace, policy), ["routed: accuracy", "skill"]),
        (why, [why.reason, "runner-up"]),
    ):
        page = value._repr_html_()
        for word in words:
            assert any(word in cell for cell in read_cells(page)), (word, page)
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "tensor(" not in repr(value)
    assert why._repr_html_().count('role="img" aria-label=') == 3
    assert repr(why.exits[0]).startswith("ExitView(exit 0: class")


def test_what_is_unknown_is_left_out(net, images):
    trace = random_trace()
    cells = read_cells(xl.Trace(trace.logits, None, trace.divergence, trace.cost)._repr_html_())
    assert "unlabelled" in cells[0]
    assert "agrees with final" in cells
    assert "accuracy" not in cells
    page = xl.Policy((0.5, float("inf")))._repr_html_()
    assert "Nothing is promised: these thresholds were set by hand" in page
    assert "never" in page
    why = xl.explain(net, images[0], xl.Policy((0.0, 0.0)), final=False)
    assert "svg" not in why._repr_html_()  # no scale of pixels is known


def test_contrast_of_known_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the example of WCAG's understanding pages


def test_words_stand_out_on_every_shade():
    for _, _, style in shade_names(tuple(map(str, range(201))), torch.linspace(0, 1, 201)):
        behind = "#{:02x}{:02x}{:02x}".format(*map(int, re.search(r"rgb\((\d+),(\d+),(\d+)\)", style).groups()))
        assert contrast(behind, "#ffffff" if "#fff" in style else "#000000") >= 4.5, style


def test_colours_of_exits_are_seen_on_white_and_black_and_carry_text():
    colours = [pick_exit_colour(k, 11) for k in range(11)]
    assert len(set(colours)) == 11
    assert pick_exit_colour(2, 3) == pick_exit_colour(10, 11)  # final
    for colour in colours:
        assert contrast(colour, "#ffffff") >= 3  # WCAG 1.4.11, graphics
        assert contrast(colour, "#14181c") >= 3
        assert contrast(colour, choose_text_colour(colour)) >= 4.5


def test_names_are_darker_where_there_is_more_attention():
    shaded = shade_names(("a", "b<"), torch.tensor([0.75, 0.25]))
    assert shaded[0] == ("a", "0.750", "background: rgb(0,114,178); color: #fff")
    assert shaded[1][1:] == ("0.250", "background: rgb(170,208,229); color: #000")
    assert "b&lt;</span>" in names_html(("a", "b<"), torch.tensor([0.75, 0.25]))


def test_classes_have_colours_of_their_own():
    colours = [pick_class_colour(label) for label in range(40)]
    assert len(set(colours)) == 40
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["red"])}):  # a user's own style
        assert [pick_class_colour(label) for label in range(40)] == colours
