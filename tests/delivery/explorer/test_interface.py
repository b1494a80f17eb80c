import base64
import math
import sys

import pytest
from PIL import Image

import exitlens as xl
from exitlens.delivery.explorer.interface import SLIDER_END, View, _decode_strokes, _read_sliders, import_gradio
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
    with pytest.raises(xl.errors.DataError, match="strokes"):
        _decode_strokes(strokes)
    view = View(explorer)
    page, message = view.paint(noise(), strokes, False, 0.5, 0.5, 0.5)
    assert page == ""
    assert 'role="alert"' in message


def test_strokes_cover(explorer):
    view, picture = View(explorer), noise()
    strokes = "data:image/png;base64," + base64.b64encode(saved("PNG", Image.new("RGBA", (32, 24), (9, 9, 9, 255)))).decode()
    covered = view.paint(picture, strokes, True, 0.5, 0.5, 0.5)[0]
    plain = view.paint(picture, "", True, 0.5, 0.5, 0.5)[0]
    assert covered.split('<div class="xl-exits')[1] != plain.split('<div class="xl-exits')[1]


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"exitlens\[app\]"):
        import_gradio()
