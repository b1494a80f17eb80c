from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.pictures.drawings import SIDE, Drawing, find_drawings, read_drawing, select_drawings, stem


def draw(shape: str, colour="red", size=(60, 40)) -> Image.Image:
    image = Image.new("RGBA", size)
    pen = ImageDraw.Draw(image)
    lines = {
        "cross": [((5, 20), (55, 20)), ((30, 2), (30, 38))],
        "slash": [((5, 36), (55, 4))],
        "roof": [((4, 36), (30, 4)), ((30, 4), (56, 36))],
    }
    for line in lines[shape]:
        pen.line(line, fill=colour, width=7)
    return image


def place(tmp_path, **files) -> None:
    for name, image in files.items():
        (tmp_path / name.split("_")[0]).mkdir(exist_ok=True)
        image.save(tmp_path / name.split("_")[0] / f"{name.split('_', 1)[1]}.png")


def test_a_drawing_is_cropped_and_scaled(tmp_path):
    place(tmp_path, a_cross=draw("cross"))
    found = read_drawing(tmp_path / "a" / "cross.png", "a")
    assert found is not None
    assert found.pixels.mode == "RGBA"
    assert max(found.pixels.size) == SIDE
    assert np.asarray(found.pixels)[..., 3][:, 0].max() > 0  # nothing empty at the left edge


@pytest.mark.parametrize("content", [b"not an image", b""])
def test_what_is_unreadable_is_no_drawing(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    assert read_drawing(tmp_path / "x.png", "a") is None


@pytest.mark.parametrize("colour", [(9, 9, 9, 255), (9, 9, 9, 0)], ids=["its own background", "nothing on it"])
def test_what_is_full_or_empty_is_no_drawing(tmp_path, colour):
    Image.new("RGBA", (40, 40), colour).save(tmp_path / "x.png")
    assert read_drawing(tmp_path / "x.png", "a") is None


def test_of_drawings_that_look_alike_one_stays_and_none_of_two_classes(tmp_path):
    mirrored = draw("slash").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    place(
        tmp_path,
        a_cross=draw("cross"),
        a_plus=draw("cross", "blue"),
        a_slash=draw("slash"),
        a_roof=draw("roof"),
        b_back=mirrored,
    )
    found = list(find_drawings(tmp_path, {"a": ("a",), "b": ("b",)}))
    assert [one.name for one in found] == ["cross", "plus", "roof", "slash", "back"]
    assert [one.name for one in select_drawings(found)] == ["cross", "roof"]


def test_versions_of_one_name_are_one_drawing(tmp_path):
    assert stem("pizza-cheese-bw") == stem("pizza-cheese") != stem("pizza")
    drawings = [
        Drawing(name, "a", draw(shape)) for name, shape in (("pie", "cross"), ("pie-bw", "roof"), ("pie-02", "slash"))
    ]
    assert [one.name for one in select_drawings(drawings)] == ["pie"]
