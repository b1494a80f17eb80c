import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

import exitlens as xl
from exitlens.delivery.explorer.core import Explorer, Share
from exitlens.delivery.explorer.interface import BOTTOM, LEFT, RIGHT, TOP, View, _explain_rule, answer_page, draw_frontier
from tests.conftest import random_trace
from tests.hostile import noise
from tests.texts import LENGTH, make_text_net


def test_rules_have_as_many_digits_as_it_takes(explorer):
    answer = explorer.answer(0, noise())
    view = answer.why.exits[0]
    near = replace(view, confidence=0.99503, threshold=0.99505, fired=False)
    assert _explain_rule(near, False) == "confidence 0.99503 < threshold 0.99505"
    gated = replace(near, estimate=0.2504, limit=0.2501)
    assert _explain_rule(gated, False).endswith("estimated divergence 0.2504 > 0.2501, the gate's limit")
    assert "never" in _explain_rule(replace(view, threshold=math.inf), False)


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
    net = make_text_net()
    words = xl.data.word_tokenizer(["the film was good", "<b> & bad food"])
    net.describe(classes=("a", "b", "c"), preprocess=xl.data.TextPreprocess(words, LENGTH))
    xl.save(net, xl.Policy((0.2, 0.5)), tmp_path / "bundle")
    explorer = Explorer([tmp_path])
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
