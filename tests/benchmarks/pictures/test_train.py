from __future__ import annotations

from PIL import Image, ImageDraw

from benchmarks.pictures.drawings import Drawing
from benchmarks.pictures.make import PICTURES, Recipe, make_folder
from benchmarks.pictures.train import SIZE, load_pictures, open_folder


def disc(name: str, label: str) -> Drawing:
    image = Image.new("RGBA", (64, 48))
    ImageDraw.Draw(image).ellipse((0, 0, 63, 47), fill="red")
    return Drawing(name, label, image)


def test_a_split_is_read_with_masks_and_drawings(tmp_path):
    drawings = [disc(f"{label}-{i}", label) for label in ("cat", "dog") for i in range(12)]
    make_folder(tmp_path, drawings, Recipe(SIZE))
    (tmp_path / "done").touch()
    found = load_pictures(open_folder(tmp_path), "validation")
    assert found.images.classes == ("cat", "dog")
    assert found.images.images.shape == (2 * PICTURES["validation"], 3, SIZE, SIZE)
    assert found.drawings.bincount().tolist() == [PICTURES["validation"]] * 2
    assert found.images.labels.tolist() == sorted(found.images.labels.tolist())
    red = found.images.images[:, 0][found.images.masks].float().mean()
    assert red > 200
    assert found.images.masks.float().mean() < 0.7
    assert found.images.preprocess.mean == found.images.preprocess.std == (0.5, 0.5, 0.5)  # as these weights were trained
