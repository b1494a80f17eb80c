"""Drawings, pictures made of them, and the error over drawings."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks import drawings, pictures, segmentation


def draw(shape, colour="red", size=(60, 40)):
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


def place(folder, **files):
    for name, image in files.items():
        label, _, stem = name.partition("_")
        (folder / label).mkdir(exist_ok=True)
        image.save(folder / label / f"{stem}.png")


def disc(name, label, colour="red"):
    image = Image.new("RGBA", (64, 48))
    ImageDraw.Draw(image).ellipse((0, 0, 63, 47), fill=colour)
    return drawings.Drawing(name, label, image)


DRAWINGS = [disc(f"{label}{i}", label, colour) for label, colour in (("cat", "red"), ("dog", "blue")) for i in range(12)]


def test_a_drawing_is_cropped_and_scaled(tmp_path):
    place(tmp_path, a_cross=draw("cross"))
    drawing = drawings.read_drawing(tmp_path / "a" / "cross.png", "a")
    assert drawing.pixels.mode == "RGBA"
    assert max(drawing.pixels.size) == drawings.SIDE
    assert np.asarray(drawing.pixels)[..., 3][:, 0].max() > 0  # nothing empty at the left edge


@pytest.mark.parametrize("content", [b"not an image", (9, 9, 9, 255), (9, 9, 9, 0)], ids=["unreadable", "full", "empty"])
def test_files_that_are_no_drawings(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x.png").write_bytes(content)
    else:
        Image.new("RGBA", (40, 40), content).save(tmp_path / "x.png")
    assert drawings.read_drawing(tmp_path / "x.png", "a") is None


def test_one_of_the_drawings_that_look_alike_stays_and_none_of_two_classes(tmp_path):
    back = draw("slash").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shapes = {"a_cross": draw("cross"), "a_plus": draw("cross", "blue"), "a_slash": draw("slash"), "a_roof": draw("roof")}
    place(tmp_path, **shapes, b_back=back)
    made = list(drawings.find_drawings(tmp_path, {"a": ("a",), "b": ("b",)}))
    assert [drawing.name for drawing in made] == ["cross", "plus", "roof", "slash", "back"]
    assert [drawing.name for drawing in drawings.select_drawings(made)] == ["cross", "roof"]
    assert drawings.strip_marks("pizza-cheese-bw") == drawings.strip_marks("pizza-cheese") != drawings.strip_marks("pizza")
    shapes = {"pie": "cross", "pie-bw": "roof", "pie-02": "slash"}
    versions = [drawings.Drawing(name, "a", draw(shape)) for name, shape in shapes.items()]
    assert [drawing.name for drawing in drawings.select_drawings(versions)] == ["pie"]


def test_no_drawing_is_in_two_splits_and_every_class_in_all():
    parts = drawings.split_drawings(DRAWINGS)
    assert sorted(row.name for part in parts.values() for row in part) == sorted(row.name for row in DRAWINGS)
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "validation": 2, "calibration": 4, "test": 6}
    assert all({row.label for row in part} == {"cat", "dog"} for part in parts.values())
    assert drawings.split_drawings(DRAWINGS, seed=1) != parts


def test_a_picture_depends_on_drawing_number_and_recipe_only():
    (picture, mask), (again, _), (other, _) = (drawings.make_picture(DRAWINGS[0], n, 64) for n in (3, 3, 4))
    assert picture.size == mask.size == (64, 64)
    assert np.array_equal(picture, again)
    assert not np.array_equal(picture, other)
    inside = np.asarray(mask) > 0
    red, *others = np.asarray(picture)[inside].astype(float).mean(0)
    assert red > 200 > 60 > max(others)
    assert 0.05 < inside.mean() < 0.6


@pytest.mark.slow
def test_a_folder_is_made_once_continued_and_read(tmp_path):
    total = drawings.make_folder(tmp_path, DRAWINGS, drawings.SIZE)
    made = sorted((tmp_path / "pictures").rglob("*.jpg"))
    assert len(made) == total == 12 * 8 + 2 * 6 + 4 * 6 + 6 * 8
    assert {path.parts[-3] for path in made} == set(drawings.SHARES)
    before, stamp = made[0].read_bytes(), made[1].stat().st_mtime_ns
    made[0].unlink()
    assert drawings.make_folder(tmp_path, DRAWINGS, drawings.SIZE) == total
    assert made[0].read_bytes() == before
    assert made[1].stat().st_mtime_ns == stamp
    (tmp_path / "done").touch()
    split, shown = drawings.load_pictures(drawings.open_folder(tmp_path), "validation")
    assert split.classes == ("cat", "dog")
    assert split.images.shape == (2 * drawings.PICTURES["validation"], 3, drawings.SIZE, drawings.SIZE)
    assert shown.bincount().tolist() == [drawings.PICTURES["validation"]] * 2
    cats = split.labels == 0
    assert split.images[cats, 0][split.masks[cats]].float().mean() > 200
    assert split.preprocess.mean == split.preprocess.std == (0.5, 0.5, 0.5)  # as these weights were trained


def test_a_flat_folder_has_classes_at_the_top(tmp_path):
    drawings.make_folder(tmp_path, DRAWINGS[::6], 16, flat=True)
    assert {path.parts[-2] for path in (tmp_path / "pictures").rglob("*.jpg")} == {"cat", "dog"}
    with pytest.raises(SystemExit, match="openclipart-png"):
        drawings.main([str(tmp_path), "--drawings", str(Path(tmp_path) / "none")])


def test_the_error_is_that_of_drawings_not_of_pictures():
    """Ten drawings of which half are right in all their pictures: sqrt(0.25 / 10), whatever the number of pictures."""
    right, drawings = (torch.arange(1000) % 2 == 0).double()[:, None], torch.arange(1000) % 10
    assert pictures.spread_by_drawing(right, drawings).item() == pytest.approx((0.25 / 10) ** 0.5, rel=0.1)


@pytest.mark.slow
def test_both_networks_take_steps(monkeypatch):
    monkeypatch.setattr(pictures, "BACKBONE", "small")
    measured = pictures.time_steps(rounds=2, batch=2, size=32)
    assert measured["ratio"][1] <= measured["ratio"][0] <= measured["ratio"][2]


@pytest.mark.slow
def test_a_picture_of_several_drawings_has_a_class_for_each_pixel(monkeypatch, tmp_path):
    shown = [DRAWINGS[0], DRAWINGS[12]]  # a red cat under a blue dog
    picture, mask = drawings.make_scene(shown, ["cat", "dog"], 3, 64)
    pixels, labels = np.asarray(picture).astype(float), np.asarray(mask)
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert pixels[labels == 1].mean(0)[0] > 200 > pixels[labels == 1].mean(0)[2]
    assert pixels[labels == 2].mean(0)[2] > 200 > pixels[labels == 2].mean(0)[0]
    monkeypatch.setattr(drawings, "PICTURES", dict.fromkeys(drawings.SHARES, 1))
    total = drawings.make_folder_of_scenes(tmp_path, DRAWINGS, 3, 32)
    assert total == len(DRAWINGS)
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.jpg"))]
    assert drawings.make_folder_of_scenes(tmp_path, DRAWINGS, 3, 32) == total
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.jpg"))] == stamps
    (tmp_path / "done").touch()
    monkeypatch.setattr(segmentation, "PICTURES", tmp_path)
    data = segmentation.load_pictures(0, quick=False)
    assert data.train.classes == ("background", "cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.load_calibration(), data.test)] == [12, 2, 4, 6]
    assert set(data.train.labels.unique().tolist()) == {0, 1, 2}


def test_two_processes_may_make_one_folder(monkeypatch, tmp_path):
    images, save, met = (Image.new("RGB", (4, 4)), Image.new("L", (4, 4))), Image.Image.save, []

    def save_and_meet(image, path, **options):
        save(image, path, **options)
        if not met:
            met.append(path)
            monkeypatch.setattr(os, "getpid", lambda: -1)
            drawings.save_pair(tmp_path / "a.jpg", tmp_path / "a.png", *images)  # the other process is faster

    monkeypatch.setattr(Image.Image, "save", save_and_meet)
    drawings.save_pair(tmp_path / "a.jpg", tmp_path / "a.png", *images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]
