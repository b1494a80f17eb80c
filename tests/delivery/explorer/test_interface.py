import base64
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery.explorer.core import Explorer, Share
from exitlens.delivery.explorer.interface import (
    BOTTOM,
    LEFT,
    RIGHT,
    SLIDER_END,
    TOP,
    View,
    _decode_strokes,
    _read_sliders,
    answer_page,
    draw_frontier,
)
from tests.conftest import random_trace
from tests.delivery.explorer.conftest import save_texts
from tests.hostile import hostile_files, noise, saved


def test_sliders_at_rest_are_the_calibrated_thresholds():
    assert _read_sliders((0.123, SLIDER_END), (0.1234567, math.inf)) == (0.1234567, math.inf)
    assert _read_sliders((0.5, 1.005), (0.1234567, 0.2)) == (0.5, math.inf)


@pytest.mark.slow
def test_hostile_uploads_are_answered_or_refused_with_a_message(explorer, tmp_path):
    view = View(explorer)
    files, before = hostile_files(), set(tmp_path.parent.rglob("*"))
    refused = 0
    thresholds = [min(t, SLIDER_END) for t in explorer.runs[0].policy.thresholds]
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        shown, board, strokes, answer, message = view.upload(str(path), False, *thresholds)
        if shown is None:
            refused += 1
            assert 'role="alert"' in message
            assert str(tmp_path) not in message
            assert answer == board == strokes == ""
        else:
            assert "<figure" in answer
        assert "<script" not in message + answer + board
    assert 60 < refused < 200
    assert view.upload(str(tmp_path / "bomb.png"), False, *thresholds)[0] is None
    assert view.upload(str(tmp_path / "turned.jpg"), False, *thresholds)[0].size == (40, 60)
    assert set(tmp_path.parent.rglob("*")) - before - set(tmp_path.iterdir()) == set()


PNG = "data:image/png;base64,"


@pytest.mark.parametrize("strokes", ["x", PNG, f"{PNG}!!!", "data:text/html;base64,PHA+", PNG + "A" * 5_000_000])
@pytest.mark.slow
def test_strokes_that_no_brush_painted_are_refused(explorer, strokes):
    with pytest.raises(xl.errors.DataError, match="strokes"):
        _decode_strokes(strokes)
    view = View(explorer)
    page, message = view.paint(noise(), strokes, False, 0.5, 0.5, 0.5)
    assert page == ""
    assert 'role="alert"' in message


@pytest.mark.slow
def test_strokes_cover(explorer):
    view, picture = View(explorer), noise()
    strokes = PNG + base64.b64encode(saved("PNG", Image.new("RGBA", (32, 24), (9, 9, 9, 255)))).decode()
    covered = view.paint(picture, strokes, True, 0.5, 0.5, 0.5)[0]
    plain = view.paint(picture, "", True, 0.5, 0.5, 0.5)[0]
    assert covered.split('<div class="xl-exits')[1] != plain.split('<div class="xl-exits')[1]


@pytest.mark.slow
def test_rules_have_as_many_digits_as_it_takes(explorer):
    answer = explorer.answer(0, noise())
    view = answer.why.exits[0]
    near = replace(view, confidence=0.99503, threshold=0.99505, fired=False)
    assert answer.why.explain_rule(near) == ["confidence 0.99503 < threshold 0.99505"]
    gated = replace(near, estimate=0.2501, threshold=0.2504)
    assert answer.why.explain_rule(gated) == [
        "confidence 0.995",
        "trust of the gate 0.2501 < threshold 0.2504",
    ]
    assert "never" in answer.why.explain_rule(replace(view, threshold=math.inf))[1]


@pytest.mark.slow
def test_relevance_of_every_exit_is_drawn_beside_its_attention(explorer):
    picture = noise()
    plain, both = (explorer.answer(0, picture, relevance=value) for value in (False, True))
    assert plain.relevance == ()
    run = both.run
    for k, one in enumerate(both.relevance):
        torch.testing.assert_close(one, xl.attribute(run.net, explorer.encode(run, picture), exit=k)[0])
    one, two = answer_page(plain, picture), answer_page(both, picture)
    assert (one.count('class="xl-heat"'), two.count('class="xl-heat"')) == (4, 8)
    assert two.count('alt="What the answer ') == 4
    assert "depends on" not in one


def test_the_share_of_every_exit_is_shown_where_it_is_known(explorer):
    answer = explorer.answer(0, noise())
    assert "faithfulness" not in answer_page(answer, None)
    known = replace(answer.run, shares=(Share(0.52, 0.08, 200), None, None, Share(0.7, 0.06, 200)))
    page = answer_page(replace(answer, run=known), noise())
    assert page.count("xl-faithful") == 2
    assert "its attention reaches 0.52\u00a0±\u00a00.08 of what trying every cell does (deletion, 200 test images)" in page


def test_slow_relevance_waits_until_it_is_asked_for(explorer, monkeypatch):
    monkeypatch.setattr("exitlens.delivery.explorer.core.SLOW_MS", 1e9)
    assert View(explorer).starts_with_relevance
    monkeypatch.setattr("exitlens.delivery.explorer.core.SLOW_MS", 0)
    assert not View(explorer).starts_with_relevance


@pytest.mark.slow
def test_texts_are_shaded_token_by_token(tmp_path):
    explorer = Explorer([save_texts(tmp_path, xl.Policy((0.2, 0.5)))])
    assert explorer.is_text
    assert explorer.examples() == []
    view = View(explorer)
    shown, text, answer, message = view.start(True, 0.2, 0.5)
    assert shown == text == "Write a text and press Enter."
    assert message == ""
    shown, answer, message = view.say("the <b> was good", True, 0.2, 0.5)
    assert message == ""
    assert answer.count("<figure") == 3
    assert ">good</span>" in answer
    assert "<b>" not in answer.split("xl-tokens")[1].split("</p>")[0]
    assert "xl-heat" not in answer
    assert answer.count("of the relevance") > 0
    assert "of the relevance" not in view.say("the film was good", False, 0.2, 0.5)[1]
    moved = view.say_again("the film was good", True, 1.01, 1.01)[0]
    assert "Write a text first" in view.say_again(None, True, 0.2, 0.5)[1]
    assert "Write a text first" in view.say("  ", True, 0.2, 0.5)[2]
    assert "no earlier exit could answer" in moved
    assert "There is no calibration data" in view.start_routed(0.2, 0.5)


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
