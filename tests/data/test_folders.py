import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.folders import open_picture
from exitlens.data.sources import open_source

PREPROCESS = xl.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02}.png")
    return tmp_path / "data"


def test_load_folder(folder):
    data, report = xl.load_folder(folder, PREPROCESS)
    assert data.images.shape == (36, 3, 16, 16)
    assert data.classes == ("cat", "dog", "emu")
    assert data.labels.bincount().tolist() == [12, 12, 12]
    assert len(report.files) == 36
    assert report.bad == ()
    images, found = xl.load_unlabelled(folder, PREPROCESS)
    torch.testing.assert_close(images, data.inputs)
    assert found.files == report.files
    one, _ = xl.load_unlabelled(report.files[3], PREPROCESS)
    torch.testing.assert_close(one[0], data.inputs[3])


def test_grey_images(folder):
    data, _ = xl.load_folder(folder, xl.Preprocess((8, 8), (0.5,), (0.5,)))
    assert data.images.shape == (36, 1, 8, 8)


def _spoil(folder):
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "03.png").write_text("not an image")
    (folder / "emu" / "05.png").write_bytes(b"")


def test_bad_files_are_named_counted_and_skipped_only_when_asked(folder):
    _spoil(folder)
    for read in (xl.load_folder, xl.load_unlabelled):
        with pytest.raises(xl.DataError, match="3 of 36 files") as error:
            read(folder, PREPROCESS)
        for name in ("00.png", "03.png", "05.png", "--skip-bad"):
            assert name in str(error.value)
        data, report = read(folder, PREPROCESS, skip_bad=True)
        assert len(data) == 33
        assert len(report.bad) == 3


def test_a_folder_of_nothing_but_bad_files(folder):
    for path in folder.rglob("*.png"):
        path.write_text("x")
    with pytest.raises(xl.DataError, match="36 of 36 files"):
        xl.load_folder(folder, PREPROCESS, skip_bad=True)


def test_a_hostile_image_is_refused(folder, tmp_path):
    with pytest.raises(xl.DataError, match="over the limit of 100"):
        xl.read_image(folder / "cat" / "00.png", (16, 16), 3, max_pixels=100)
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(xl.DataError, match="cannot be read as an image"):  # nothing is run to read it
        xl.read_image(tmp_path / "x.png", (16, 16), 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
def test_every_format_is_read(form, tmp_path):
    path = tmp_path / "image"
    Image.new("RGB", (20, 10), (200, 30, 30)).save(path, form)
    pixels = xl.read_image(path, None, 3)
    assert pixels.shape == (3, 10, 20)
    assert (pixels.float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 8


def test_unusual_images(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    deep = xl.read_image(tmp_path / "deep.png", (64, 64), 3)
    assert deep.float().mean().item() == pytest.approx(127.5, abs=1)
    Image.fromarray(np.random.rand(8, 8).astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(xl.DataError, match="no agreed range"):
        xl.read_image(tmp_path / "float.tiff", (8, 8), 3)
    turned = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert xl.read_image(tmp_path / "turned.jpg", None, 3).shape == (3, 20, 10)
    Image.fromarray(np.full((8, 8), 3, np.uint8), "L").convert("P").save(tmp_path / "palette.png")
    assert xl.read_image(tmp_path / "palette.png", (8, 8), 3).shape == (3, 8, 8)


def test_pictures_are_shrunk_on_request(tmp_path):
    whole = Image.effect_noise((900, 600), 40).convert("RGB")
    for name, mode in (("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.png", "P"), ("d.tiff", "CMYK")):
        whole.convert(mode).save(tmp_path / name)
        found = open_picture(tmp_path / name, 3, longest=300)
        assert found.size == (300, 200)
        assert found.mode == "RGB"
        assert abs(np.asarray(found).mean() - np.asarray(whole).mean()) < 5 or mode == "CMYK"
        assert open_picture(tmp_path / name, 1).size == (900, 600)
    exif = whole.getexif()
    exif[0x0112] = 6
    whole.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg", 3, longest=300).size == (200, 300)


def test_hidden_files_are_not_data(folder):
    (folder / "cat" / ".ipynb_checkpoints").mkdir()
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / ".ipynb_checkpoints" / "00-checkpoint.png").write_bytes(whole)
    (folder / "cat" / "._00.png").write_bytes(b"x")
    assert len(xl.load_folder(folder, PREPROCESS)[0]) == 36


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(xl.DataError, match="no folder"):
        xl.load_folder(tmp_path / "none", PREPROCESS)
    (tmp_path / "one" / "cat").mkdir(parents=True)
    with pytest.raises(xl.DataError, match=r"1 class folder\(s\)"):
        xl.load_folder(tmp_path / "one", PREPROCESS)
    (tmp_path / "one" / "dog").mkdir()
    with pytest.raises(xl.DataError, match="no image files"):
        xl.load_folder(tmp_path / "one", PREPROCESS)
    with pytest.raises(xl.DataError, match="the network has not"):
        xl.load_folder(folder, PREPROCESS, classes=("cat", "dog"))
    with pytest.raises(xl.DataError, match="no file or folder"):
        xl.load_unlabelled(tmp_path / "none", PREPROCESS)


def test_split_set_is_disjoint_and_keeps_every_class(folder):
    data, _ = xl.load_folder(folder, PREPROCESS)
    parts = xl.split_set(data, (0.6, 0.2, 0.2))
    assert sum(len(p) for p in parts) == len(data)
    images = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(set(images)) == len(data)
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)
    with pytest.raises(xl.InputError, match="sum to 1"):
        xl.split_set(data, (0.5, 0.2))
    with pytest.raises(xl.DataError, match="need 13 or more"):
        xl.split_set(data, (1 / 13,) * 13)


def test_a_source_splits_a_folder_the_same_way_each_time_and_notices_changes(folder):
    source = open_source(str(folder), size=16, seed=1)
    parts = {split: source.load(split) for split in ("train", "validation", "calibration", "test")}
    assert torch.equal(parts["test"].images, source.load("test").images)
    assert sum(map(len, parts.values())) == 36
    assert parts["train"].images.shape[2:] == (16, 16)
    (folder / "cat" / "new.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    with pytest.raises(xl.DataError, match="not those of training"):
        source.load("test")


def test_a_folder_that_is_split_already(folder, tmp_path):
    for split in ("train", "validation", "calibration", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            target = tmp_path / "split" / split / name
            target.mkdir()
            (target / "a.png").write_bytes((folder / name / "01.png").read_bytes())
    assert len(open_source(str(tmp_path / "split")).load("test")) == 2


def test_sources_by_name():
    assert len(open_source("scenes").load("validation")) == 1000
    assert open_source("fashion").load("validation").images.shape[1] == 1
    with pytest.raises(xl.DataError, match="it can also be scenes"):
        open_source("scene")
    with pytest.raises(xl.InputError, match="root"):
        open_source("torchvision:CIFAR10")
    with pytest.raises(xl.InputError, match="split"):
        open_source("scenes").load("dev")


def test_torchvision_sets(tmp_path, monkeypatch):
    with pytest.raises(xl.DataError, match="download=True"):
        xl.load_torchvision("CIFAR10", tmp_path, train=True)
    with pytest.raises(xl.InputError, match="no data set"):
        xl.load_torchvision("CIFAR1", tmp_path, train=True)

    class Fake:
        classes = ("a", "b")

        def __init__(self, root, train, download):
            self.data = np.zeros((40, 8, 8, 3), np.uint8)
            self.targets = [0, 1] * 20

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    source = open_source("torchvision:CIFAR10", root=str(tmp_path))
    assert source.load("train").images.shape == (32, 3, 8, 8)
    assert len(source.load("calibration")) == 4
    assert len(source.load("test")) == 40
