"""The explorer without a browser: what it answers, what it refuses, what its page says."""

import base64
import math
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery.explanations.pictures import heat
from exitlens.delivery.explorer.app import import_gradio
from exitlens.delivery.explorer.core import EXAMPLES, Explorer, cover
from exitlens.delivery.explorer.frontier import BOTTOM, LEFT, RIGHT, TOP, frontier_svg
from exitlens.delivery.explorer.page import _rule, answer_page, routed_page
from exitlens.delivery.explorer.view import NEVER, View, _decode, _thresholds
from tests.conftest import random_trace
from tests.hostile import hostile_files, noise, saved
from tests.texts import LENGTH, make_text_net


@pytest.fixture(scope="module")
def explorer(trained):
    return Explorer([trained])


def test_an_answer_is_that_of_explain(explorer):
    subject, picture = explorer.subjects[0], noise()
    answer = explorer.answer(0, picture)
    why = xl.explain(subject.net, explorer.encode(subject, picture), subject.policy)
    assert answer.why.label == why.label
    assert answer.why.answered == why.answered
    assert answer.ours_ms > 0
    assert 1 <= answer.rounds <= 5
    page = answer_page(answer, picture)
    assert why.reason.replace("'", "&#39;") in page
    assert page.count("<figure") == 4
    assert page.count('alt="Where ') == 4
    assert "://" not in page


def test_moved_thresholds_decide_and_promise_nothing(explorer):
    picture = noise()
    for thresholds, exit_index in (((0.0, 0.5, 0.5), 0), ((math.inf, 0.0, 0.5), 1), ((math.inf,) * 3, 3)):
        assert explorer.answer(0, picture, thresholds).why.answered == exit_index
    assert explorer.policy(0, (0.0, 0.5, 0.5)).calibration is None
    assert explorer.policy(0, explorer.subjects[0].policy.thresholds).calibration


def test_the_calibration_trace_follows_the_thresholds(explorer):
    trace = explorer.trace(0)
    assert explorer.trace(0) is trace  # collected once
    report = explorer.routed(0, (0.0, 0.0, 0.0))
    assert report.exit_shares == (1.0, 0.0, 0.0, 0.0)
    page = routed_page(explorer.subjects[0], report, changed=True, kind="calibration samples")
    assert f"{report.samples} calibration samples under these thresholds" in page
    assert "nothing is promised" in page
    assert '<td class="xl-share">100.0 %</td>' in page
    assert f"at cost {report.cost:.3f}" in page
    assert "There is no" in routed_page(explorer.subjects[0], "There is no <trace>", changed=False, kind="")


def test_examples_are_test_images_of_the_run(explorer):
    examples = explorer.examples()
    assert 1 <= len(examples) <= EXAMPLES
    assert {one.truth for one in examples} <= {"dark", "bright"}


def test_a_bundle_by_itself_shows_bundled_scenes(net, tmp_path):
    backbone = xl.build_backbone("small", 2)
    small = xl.attach(backbone, ["layer1"], 2, torch.zeros(1, 3, 32, 32)).eval()
    small.describe(source="small", classes=("a", "b"), preprocess=xl.Preprocess((32, 32)))
    xl.save(small, None, tmp_path / "bundle")
    explorer = Explorer([tmp_path])
    assert len(explorer.examples()) == EXAMPLES
    assert explorer.subjects[0].policy.thresholds == (0.9,)
    assert explorer.routed(0, (0.9,)).startswith("There is no calibration data")
    assert "Thresholds chosen by hand" in View(_with_trace(explorer)).route(0)(0.9)


def test_other_data_than_the_runs_own(folder, tmp_path):
    small = xl.attach(xl.build_backbone("small", 2), ["layer1"], 2, torch.zeros(1, 3, 32, 32)).eval()
    small.describe(source="small", classes=("dark", "bright"), preprocess=xl.Preprocess((32, 32)))
    xl.save(small, None, tmp_path / "bundle")
    explorer = Explorer([tmp_path], str(folder))
    assert {one.truth for one in explorer.examples()} == {"dark", "bright"}
    assert f"60 samples of {folder} under" in View(explorer).route(0)(0.9)
    with pytest.raises(xl.DataError):
        View(Explorer([tmp_path], str(tmp_path / "nothing")))


def test_the_plot_holds_everything_and_has_round_ticks():
    report = xl.evaluate(random_trace(k=3), xl.Policy((0.5, 0.5)))
    drawn = ElementTree.fromstring(frontier_svg(report))
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


def _with_trace(explorer: Explorer) -> Explorer:
    explorer._traces[0] = random_trace(k=2)
    return explorer


def test_what_is_painted_is_covered():
    picture = Image.new("RGB", (40, 20), (200, 0, 0))
    picture.paste((0, 0, 100), (0, 0, 20, 20))
    strokes = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    strokes.paste((128, 128, 128, 255), (0, 0, 40, 40))  # the left half
    covered = np.asarray(cover(picture, strokes))
    assert (covered[:, :19] == (100, 0, 50)).all()
    assert (covered[:, 21:] == (200, 0, 0)).all()
    assert cover(picture, None) is picture


def test_a_uniform_map_is_pale():
    uniform, sharp = heat(torch.full((5, 5), 0.04)), heat(torch.eye(5) / 5)
    assert np.asarray(uniform)[..., 3].max() < 120 < np.asarray(sharp)[..., 3].max()


def test_sliders_at_rest_are_the_calibrated_thresholds():
    assert _thresholds((0.123, NEVER), (0.1234567, math.inf)) == (0.1234567, math.inf)
    assert _thresholds((0.5, 1.005), (0.1234567, 0.2)) == (0.5, math.inf)


def test_two_of_a_kind_only(trained):
    with pytest.raises(xl.InputError, match="one bundle, or two"):
        Explorer([])
    with pytest.raises(xl.BundleError):
        Explorer([Path("nowhere")])
    both = Explorer([trained, trained])
    assert [subject.name for subject in both.subjects] == ["x", "x (2)"]


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(xl.MissingExtraError, match=r"exitlens\[app\]"):
        import_gradio()


# --- hostile input ---


def test_a_large_upload_is_shrunk(explorer, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGBA", (6000, 4000)).save(path)  # 24 million pixels; the browser's test watches the memory
    assert explorer.read(path).size == (1024, 683)


def test_rules_have_as_many_digits_as_it_takes(explorer):
    answer = explorer.answer(0, noise())
    view = answer.why.exits[0]
    near = replace(view, confidence=0.99503, threshold=0.99505, fired=False)
    assert _rule(near, False) == "confidence 0.99503 < threshold 0.99505"
    gated = replace(near, estimate=0.2504, limit=0.2501)
    assert _rule(gated, False).endswith("estimated divergence 0.2504 > 0.2501, the gate's limit")
    assert "never" in _rule(replace(view, threshold=math.inf), False)


def test_hostile_uploads_are_answered_or_refused_with_a_message(explorer, tmp_path):
    view = View(explorer)
    files, before = hostile_files(), set(tmp_path.parent.rglob("*"))
    refused = 0
    thresholds = [min(t, NEVER) for t in explorer.subjects[0].policy.thresholds]
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        shown, board, strokes, answer, message = view.upload(str(path), *thresholds)
        if shown is None:
            refused += 1
            assert 'role="alert"' in message
            assert str(tmp_path) not in message
            assert answer == board == strokes == ""
        else:
            assert "<figure" in answer
        assert "<script" not in message + answer + board
    assert 60 < refused < 200
    assert view.upload(str(tmp_path / "bomb.png"), *thresholds)[0] is None
    assert view.upload(str(tmp_path / "turned.jpg"), *thresholds)[0].size == (40, 60)
    assert set(tmp_path.parent.rglob("*")) - before - set(tmp_path.iterdir()) == set()


@pytest.mark.parametrize(
    "strokes",
    [
        "x",
        "data:image/png;base64,",
        "data:image/png;base64,!!!",
        "data:text/html;base64,PHA+",
        "data:image/png;base64," + "A" * 5_000_000,
    ],
)
def test_strokes_that_no_brush_painted_are_refused(explorer, strokes):
    with pytest.raises(xl.DataError, match="strokes"):
        _decode(strokes)
    view = View(explorer)
    page, message = view.paint(noise(), strokes, 0.5, 0.5, 0.5)
    assert page == ""
    assert 'role="alert"' in message


def test_strokes_cover(explorer):
    view, picture = View(explorer), noise()
    strokes = "data:image/png;base64," + base64.b64encode(saved("PNG", Image.new("RGBA", (32, 24), (9, 9, 9, 255)))).decode()
    covered = view.paint(picture, strokes, 0.5, 0.5, 0.5)[0]
    plain = view.paint(picture, "", 0.5, 0.5, 0.5)[0]
    assert covered.split('<div class="xl-exits')[1] != plain.split('<div class="xl-exits')[1]


def test_texts_are_shaded_token_by_token(tmp_path):
    net = make_text_net()
    words = xl.word_tokenizer(["the film was good", "<b> & bad food"])
    net.describe(classes=("a", "b", "c"), preprocess=xl.TextPreprocess(words, LENGTH))
    xl.save(net, xl.Policy((0.2, 0.5)), tmp_path / "bundle")
    explorer = Explorer([tmp_path])
    assert explorer.is_text
    assert explorer.examples() == []
    view = View(explorer)
    shown, text, answer, message = view.start(0.2, 0.5)
    assert shown == text == "Write a text and press Enter."
    assert message == ""
    shown, answer, message = view.say("the <b> was good", 0.2, 0.5)
    assert message == ""
    assert answer.count("<figure") == 3
    assert ">good</span>" in answer
    assert "<b>" not in answer.split("xl-tokens")[1].split("</p>")[0]
    assert "xl-heat" not in answer
    moved = view.say_again("the film was good", 1.01, 1.01)[0]
    assert "Write a text first" in view.say_again(None, 0.2, 0.5)[1]
    assert "Write a text first" in view.say("  ", 0.2, 0.5)[2]
    assert "no earlier exit could answer" in moved
    assert "There is no calibration data" in view.start_routed(0.2, 0.5)


def test_an_image_bundle_and_a_text_bundle_do_not_go_together(trained, tmp_path):
    net = make_text_net()
    net.describe(preprocess=xl.TextPreprocess(xl.word_tokenizer(["a b"]), LENGTH))
    xl.save(net, None, tmp_path / "bundle")
    with pytest.raises(xl.InputError, match="compare two of a kind"):
        Explorer([trained, tmp_path])
