"""Folders of images with a class for each pixel: what is read, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.batches import iterate_batches
from exitlens.data.files import list_names
from exitlens.data.formats import find_format
from exitlens.data.masks import choose_classes, read_classes
from exitlens.data.sources import open_source
from exitlens.modalities import IMAGE
from tests.conftest import make_pixel_set, write_pixel_folder
from tests.data.conftest import PREPROCESS, SMALL


@pytest.fixture
def data():
    return make_pixel_set(6)


@pytest.fixture
def folder(tmp_path, data):
    return write_pixel_folder(tmp_path / "set", data)


def test_images_and_masks_come_back(folder, data):
    lazy = xl.data.load_masks(folder, PREPROCESS)
    assert (len(lazy), lazy.classes, lazy.labels.shape) == (6, data.classes, (6, 16, 16))
    held = lazy.load()
    assert held.images.equal(data.images)
    assert held.labels.equal(data.labels)
    inputs, labels = lazy[4]
    assert inputs.equal(lazy.preprocess.normalise(data.images[4]))
    assert labels.equal(data.labels[4])
    picked = lazy.subset(torch.tensor([5, 1]))
    assert picked.load().labels.equal(data.labels[[5, 1]])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_labels_of_their_images(folder, data, workers, tmp_path):
    lazy = xl.data.load_masks(folder, PREPROCESS).cached(tmp_path / "cache")
    for _ in range(2):  # pixels from files, then from the cache
        batches = list(iterate_batches(lazy, 4, workers=workers))
        assert [len(batch.labels) for batch in batches] == [4, 2]
        assert torch.cat([batch.labels for batch in batches]).equal(data.labels)


def test_masks_take_the_nearest_pixel(folder, data):
    labels = xl.data.load_masks(folder, SMALL)[0][1]
    assert labels.equal(data.labels[0, 1::2, 1::2])  # PIL takes the pixel after the middle of two


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_indices_may_have_a_palette_or_more_bits(folder, data, mode):
    path = folder / "masks" / "03.png"
    picture = Image.fromarray(data.labels[3].numpy().astype(np.uint8 if mode == "P" else np.uint16))
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert xl.data.load_masks(folder, PREPROCESS)[3][1].equal(data.labels[3])


def test_a_mask_of_two_colours_has_indices_0_and_1(folder):
    for path in (folder / "masks").iterdir():
        Image.fromarray(read(path) == 1).save(path)
    assert xl.data.load_masks(folder, PREPROCESS, classes=("no", "yes")).load().labels.unique().tolist() == [0, 1]


def read(path):
    """The values of a picture."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def spoil(path, what):
    if what == "missing":
        path.unlink()
    elif what == "size":
        Image.fromarray(read(path)).resize((9, 16)).save(path)
    elif what == "index":
        Image.fromarray(np.full((16, 16), 4, np.uint8)).save(path)
    elif what == "colours":
        Image.fromarray(read(path)).convert("RGB").save(path)
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif what == "large index":
        Image.fromarray(np.full((16, 16), 300, np.uint16)).save(path)
    else:
        path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"masks/02\.png: there is no such mask for images/02\.png \(of \.png, "),
        ("size", r"masks/02\.png: expected the 16x16 pixels of its image, got 16x9"),
        ("index", r"masks/02\.png: expected indices in \[0, 4\), or 255 where a pixel has no class, got 4 among them"),
        ("colours", r"masks/02\.png: expected a mask of class indices, grey or with a palette, got colours \(RGB\)"),
        ("truncated", r"masks/02\.png: cannot be read as a mask"),
        ("large index", r"masks/02\.png: expected indices of at most 255, got 300 to 300"),
        ("no picture", r"masks/02\.png: cannot be read as a mask"),
    ],
)
def test_a_bad_mask_is_named(folder, what, message):
    spoil(folder / "masks" / "02.png", what)
    lazy = xl.data.load_masks(folder, PREPROCESS)
    with pytest.raises(xl.errors.DataError, match=message):
        lazy[2]
    kept = xl.data.load_masks(folder, PREPROCESS, skip_bad=True)
    assert len(kept.load()) == 5
    assert len(kept.bad) == 1


def test_a_bad_image_is_named_before_its_mask(folder):
    (folder / "images" / "02.png").write_bytes(b"no picture")
    with pytest.raises(xl.errors.DataError, match=r"images/02\.png: cannot be read as an image"):
        xl.data.load_masks(folder, PREPROCESS)[2]


def test_two_files_of_one_name_are_refused(folder):
    for part in ("images", "masks"):
        other = folder / part / "03.bmp"
        Image.new("L", (16, 16)).save(other)
        with pytest.raises(xl.errors.DataError, match=rf"{part} has 03\.bmp and 03\.png, and .* Fix: rename"):
            xl.data.load_masks(folder, PREPROCESS)
        other.unlink()


def test_masks_of_a_network_have_its_classes(folder, data):
    assert choose_classes(folder, data.classes) == choose_classes(folder, ()) == data.classes
    with pytest.raises(xl.errors.DataError, match=r"its masks have the classes none, bright, red, blue, the network blue, "):
        open_source(str(folder), size=16).load("train", classes=data.classes[::-1])
    (folder / "classes.txt").unlink()
    assert choose_classes(folder, data.classes) == data.classes


def test_named_columns_of_metadata_win(folder):
    (folder / "metadata.csv").write_text("file_name,kind\nimages/00.png,a\n")
    assert find_format(str(folder)) == "masks"
    assert find_format(str(folder), columns="label=kind") == "imagefolder"


def test_white_is_no_class(folder):
    for path in (folder / "masks").iterdir():
        Image.fromarray((read(path) == 1).astype(np.uint8) * 255).save(path)
    with pytest.raises(xl.errors.DataError, match=r"the values 0 and 255 alone.*Fix: save 1 in place of 255"):
        xl.data.load_masks(folder, PREPROCESS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.json", '["a", "b"]', ""),
        ("classes.json", '{"a": 0}', "expected a list of names"),
        ("classes.json", "[", "damaged"),
        ("classes.txt", "a\n\n b \n", ""),
        ("classes.txt", "alone\n", r"has 1 class\(es\) of pixels, need 2 or more"),
        ("other.txt", "a\nb\n", "does not say what the indices of its masks mean. Fix: write the names"),
    ],
)
def test_names_of_classes(folder, name, text, message):
    (folder / "classes.txt").unlink()
    (folder / name).write_text(text)
    if not message:
        assert read_classes(folder) == ("a", "b")
        return
    with pytest.raises(xl.errors.DataError, match=message):
        xl.data.load_masks(folder, PREPROCESS)


def test_a_folder_without_masks_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(xl.errors.DataError, match=r"expected images/name\.jpg with masks/name\.png"):
        xl.data.load_masks(tmp_path, PREPROCESS)


def test_splits_are_folders_or_are_cut(tmp_path, data):
    for split in ("train", "val", "test"):
        write_pixel_folder(tmp_path / "set" / split, data)
        (tmp_path / "set" / split / "classes.txt").rename(tmp_path / "set" / "classes.txt")
    source = open_source(str(tmp_path / "set"), size=16)
    assert source.format == find_format(str(tmp_path / "set")) == "masks"
    loaded = source.load_splits(("validation", "test"))
    assert loaded.sets["test"].load().labels.equal(data.labels)
    assert "validation: 6 images with 4 classes of pixels" in loaded.notes[-1]
    (tmp_path / "set" / "test" / "masks").rename(tmp_path / "set" / "test" / "later")
    loaded = open_source(str(tmp_path / "set"), size=16).load_splits(("train", "test"))
    assert "'test' has no labels and is not used" in loaded.notes
    assert 0 < len(loaded.sets["test"]) < len(data)  # cut from train
    alone = write_pixel_folder(tmp_path / "alone", make_pixel_set(40))
    parts = (
        open_source(str(alone), size=16, group_by=r"(\d)\d\.")
        .load_splits(("train", "validation", "calibration", "test"))
        .sets
    )
    assert sum(map(len, parts.values())) == 40
    assert len({group for part in parts.values() for group in part.groups.unique().tolist()}) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "multilabel"}, "task: .* has one class for each pixel"),
        ({"task": "classes"}, "task: .* has one class for each pixel. Fix: give class folders"),
        ({"columns": "image=x"}, "is a folder of images and masks, without columns"),
    ],
)
def test_what_does_not_go_with_masks(folder, given, message):
    with pytest.raises(xl.errors.InputError, match=message):
        open_source(str(folder), size=16, **given).load("train")


def test_the_task_needs_masks(tmp_path, folder):
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "classes" / name / "x.png")
    with pytest.raises(
        xl.errors.InputError, match=r"has no class for each pixel\. Fix: give a folder with images/ beside masks/"
    ):
        open_source(str(tmp_path / "classes"), task="segmentation").load("train")
    with pytest.raises(xl.errors.InputError, match="fashion has no class for each pixel"):
        open_source("fashion", task="segmentation")


def test_scenes_have_several_garments():
    data = open_source("scenes", size=32, task="segmentation").load("validation")
    assert data.labels.shape == (1000, 32, 32)
    several = [len(labels.unique()) > 2 for labels in data.labels[:50]]
    assert sum(several) > 40


def test_masks_are_not_listed_as_images(folder):
    names = list_names(folder, IMAGE)
    assert names
    assert all(name.startswith("images/") for name in names)
    assert list_names(folder / "masks", IMAGE)  # which was asked for
    assert len(xl.data.load_unlabelled(folder, PREPROCESS).inputs) == len(names)
    for image in names:
        (folder / image).unlink()
    with pytest.raises(xl.errors.DataError, match=r"has masks and no images\. Fix: "):
        list_names(folder, IMAGE)


class TestOutlines:
    """COCO's format, by hand: image 0 has a square of class 1 with a smaller one of class 2 on it."""

    @pytest.fixture(autouse=True)
    def _needs_pycocotools(self):
        pytest.importorskip("pycocotools")

    @pytest.fixture
    def coco(self, tmp_path):
        (tmp_path / "images").mkdir()
        for i in range(2):
            Image.new("RGB", (12, 10), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        values = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 12} for i in range(2)],
            "categories": [{"id": 7, "name": "large"}, {"id": 9, "name": "small"}],
            "annotations": [
                {"image_id": 0, "category_id": 9, "segmentation": [[3, 3, 6, 3, 6, 6, 3, 6]]},
                {"image_id": 0, "category_id": 7, "segmentation": [[2, 2, 9, 2, 9, 8, 2, 8]]},
                # columns, from the top: 110 pixels without, the last column of 10 with it
                {"image_id": 1, "category_id": 7, "segmentation": {"size": [10, 12], "counts": [110, 10]}},
                {"image_id": 1, "category_id": 9, "iscrowd": 1, "segmentation": {"size": [10, 12], "counts": [0, 10, 110]}},
            ],
        }
        self.write(tmp_path, values)
        return tmp_path, values

    def write(self, root, values):
        (root / "annotations.json").write_text(json.dumps(values))

    def test_they_are_drawn(self, coco):
        root, _ = coco
        lazy = xl.data.load_masks(root, xl.data.Preprocess((10, 12), (0.5,) * 3, (0.25,) * 3))
        assert lazy.classes == ("background", "large", "small")
        expected = torch.zeros(2, 10, 12, dtype=torch.uint8)
        expected[0, 2:8, 2:9], expected[0, 3:6, 3:6] = 1, 2
        expected[1, :, 11], expected[1, :, 0] = 1, 255
        assert lazy.load().labels.equal(expected)
        assert open_source(str(root), size=16).format == "masks"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v["images"].pop(1), "expected COCO's images, annotations and categories"),
            (lambda v: v["images"][0].update(height=9), r"0\.png: expected 10x12 pixels, as the image has, got \(9, 12\)"),
            (lambda v: v["annotations"][0].update(segmentation=[[1, 2]]), r"0\.png: an outline cannot be read"),
            (lambda v: v["annotations"][2]["segmentation"].update(size=[5, 24]), r"1\.png: an outline cannot be read"),
            (lambda v: v["annotations"][0].update(category_id=3), "expected COCO's images, annotations and categories"),
            (lambda v: v.pop("categories"), "it has no categories as COCO has"),
        ],
    )
    def test_what_is_wrong_is_named(self, coco, change, message):
        root, values = coco
        change(values)
        self.write(root, values)
        with pytest.raises(xl.errors.DataError, match=message):
            list(xl.data.load_masks(root, SMALL).load())

    def test_an_image_that_is_not_listed(self, coco):
        root, _ = coco
        Image.new("RGB", (12, 10)).save(root / "images" / "2.png")
        with pytest.raises(
            xl.errors.DataError, match=r"annotations\.json: 2\.png: this image is not listed there; .* 0\.png"
        ):
            xl.data.load_masks(root, SMALL)[2]


def test_outlines_need_the_extra(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "0.png")
    categories = [{"id": 1, "name": "a"}]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"pip install 'exitlens\[coco\]'"):
        xl.data.load_masks(tmp_path, SMALL)
