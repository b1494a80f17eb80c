from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.pictures.drawings import Drawing
from benchmarks.pictures.make import SHARES, Recipe, main, make_folder, make_picture, split_drawings


def disc(name: str, label: str, colour: str = "red") -> Drawing:
    image = Image.new("RGBA", (64, 48))
    ImageDraw.Draw(image).ellipse((0, 0, 63, 47), fill=colour)
    return Drawing(name, label, image)


DRAWINGS = [disc(f"{label}{i}", label, colour) for label, colour in (("cat", "red"), ("dog", "blue")) for i in range(12)]


def test_no_drawing_is_in_two_splits_and_every_class_in_all():
    parts = split_drawings(DRAWINGS)
    assert sorted(one.name for part in parts.values() for one in part) == sorted(one.name for one in DRAWINGS)
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "validation": 2, "calibration": 4, "test": 6}
    assert all({one.label for one in part} == {"cat", "dog"} for part in parts.values())
    assert split_drawings(DRAWINGS, seed=1) != parts


def test_a_picture_depends_on_drawing_number_and_recipe_only():
    picture, mask = make_picture(DRAWINGS[0], 3, Recipe(48), ["cat", "dog"])
    again, _ = make_picture(DRAWINGS[0], 3, Recipe(48), ["cat", "dog"])
    other, _ = make_picture(DRAWINGS[0], 4, Recipe(48), ["cat", "dog"])
    assert picture.size == mask.size == (48, 48)
    assert np.array_equal(picture, again)
    assert not np.array_equal(picture, other)


def test_the_mask_is_where_the_drawing_is():
    picture, mask = make_picture(DRAWINGS[0], 0, Recipe(64), ["cat", "dog"])
    inside = np.asarray(mask) > 0
    red = np.asarray(picture)[inside].astype(float).mean(0)
    assert red[0] > 200
    assert red[1:].max() < 60
    assert 0.05 < inside.mean() < 0.6


def test_a_cue_gives_the_background_the_hue_of_the_class():
    def redness(agreement: float) -> float:
        pairs = [make_picture(DRAWINGS[0], n, Recipe(32, agreement=agreement), ["cat", "dog"]) for n in range(12)]
        shades = [np.asarray(picture)[np.asarray(mask) == 0].astype(float).mean(0) for picture, mask in pairs]
        return float(np.mean([shade[0] - shade[1:].mean() for shade in shades]))

    assert redness(1.0) > 20 > -20 > redness(0.0)


def test_a_folder_is_made_once_and_continued(tmp_path):
    total = make_folder(tmp_path, DRAWINGS, Recipe(32))
    made = sorted((tmp_path / "pictures").rglob("*.jpg"))
    assert len(made) == total == 12 * 8 + 2 * 6 + 4 * 6 + 6 * 8
    assert {path.parts[-3] for path in made} == set(SHARES)
    assert [
        path.relative_to(tmp_path / "masks").with_suffix("") for path in sorted((tmp_path / "masks").rglob("*.png"))
    ] == [path.relative_to(tmp_path / "pictures").with_suffix("") for path in made]
    before, stamp = made[0].read_bytes(), made[1].stat().st_mtime_ns
    made[0].unlink()
    assert make_folder(tmp_path, DRAWINGS, Recipe(32)) == total
    assert made[0].read_bytes() == before
    assert made[1].stat().st_mtime_ns == stamp


def test_a_flat_folder_has_classes_at_the_top(tmp_path):
    make_folder(tmp_path, DRAWINGS[::6], Recipe(16), flat=True)
    assert {path.parts[-2] for path in (tmp_path / "pictures").rglob("*.jpg")} == {"cat", "dog"}


def test_without_drawings_it_says_what_to_install(tmp_path):
    with pytest.raises(SystemExit, match="openclipart-png"):
        main([str(tmp_path), "--drawings", str(Path(tmp_path) / "none")])
