import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.batches import iterate_batches
from exitlens.data.files import hash_files, list_files, stamp_files
from exitlens.data.sets import check_files
from exitlens.data.sources import open_source
from exitlens.errors import DataError, InputError
from exitlens.progress import show_progress
from tests.data.conftest import PREPROCESS


def test_files_are_listed_in_order_without_hidden_ones(tmp_path):
    for name in ("b.tar", "a.TAR", "c/d.tar", ".e.tar", ".f/g.tar", "cache-1.tar", "h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in list_files(tmp_path, (".tar",))] == ["a.TAR", "b.tar", "c/d.tar"]
    assert len(list_files(tmp_path)) == 4
    assert list_files(tmp_path / "b.tar") == [tmp_path / "b.tar"]
    assert len(stamp_files(list_files(tmp_path))) == 4
    (tmp_path / "i.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        stamp_files(list_files(tmp_path))


def test_a_hash_tells_other_names_sizes_and_ends(tmp_path):
    path = tmp_path / "x"
    found = set()
    for content in (b"a" * 300_000, b"b" + b"a" * 299_999, b"a" * 299_999 + b"b", b"a" * 300_001, b"", b"a"):
        path.write_bytes(content)
        found.add(hash_files([path]))
    found.add(hash_files([path.rename(tmp_path / "y")]))
    assert len(found) == 7
    with pytest.raises(DataError, match=r"x cannot be read \(FileNotFoundError"):
        hash_files([path])


def test_load_folder(folder):
    (folder / "cat" / ".ipynb_checkpoints").mkdir()
    for hidden in (".ipynb_checkpoints/00-checkpoint.png", "._00.png"):
        (folder / "cat" / hidden).write_bytes((folder / "cat" / "00.png").read_bytes())
    data = xl.data.load_folder(folder, PREPROCESS)
    assert data.inputs.shape == (36, 3, 16, 16)
    assert xl.data.load_folder(folder, xl.data.Preprocess((8, 8), (0.5,), (0.5,))).inputs.shape == (36, 1, 8, 8)
    assert data.classes == ("cat", "dog", "emu")
    assert data.labels.bincount().tolist() == [12, 12, 12]
    images = xl.data.load_unlabelled(folder, PREPROCESS)
    torch.testing.assert_close(images.inputs, data.inputs)
    assert [str(path) for path in images.files] == [data.name(i) for i in range(36)]
    alone = xl.data.load_unlabelled(images.files[3], PREPROCESS)
    torch.testing.assert_close(alone.inputs[0], data.inputs[3])


def _spoil(folder):
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "03.png").write_text("not an image")
    (folder / "emu" / "05.png").write_bytes(b"")


def test_bad_files_are_named_counted_and_skipped_only_when_asked(folder):
    _spoil(folder)
    with pytest.raises(DataError, match="3 of 36 files") as error:
        xl.data.load_unlabelled(folder, PREPROCESS)
    for name in ("00.png", "03.png", "05.png", "--skip-bad"):
        assert name in str(error.value)
    images = xl.data.load_unlabelled(folder, PREPROCESS, skip_bad=True)
    assert (len(images.inputs), len(images.files), len(images.bad)) == (33, 33, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_of_every_split_are_named_before_training(folder, tmp_path, workers):
    for name, kind in (("cat/01.png", "JPEG"), ("cat/02.png", "BMP"), ("cat/03.png", "WEBP")):
        with Image.open(folder / name) as image:
            image.save(folder / name, format=kind)  # whole files, whatever their names say
    with (folder / "cat" / "01.png").open("ab") as file:
        file.write(b"what a camera adds")
    for part in ("train", "calibration"):
        shutil.copytree(folder, tmp_path / "all" / part)
    source = open_source(str(tmp_path / "all"), size=8)
    with show_progress(False) as bar:
        check_files(source.load_splits(["train"]).parts, workers, bar)
        _spoil(tmp_path / "all" / "calibration")
        loaded = source.load_splits(["train"], skip_bad=True)
        with pytest.raises(DataError, match=r"3 of 72 files cannot be read\. Fix: repair them, or pass --skip-bad") as error:
            check_files(loaded.parts, workers, bar)
    for name in (
        "cat/00.png: cannot be",
        "dog/03.png: cannot be read as an image .it is empty, or none of PNG",
        "emu/05.png",
    ):
        assert re.search(f"calibration/{name}", str(error.value))


@pytest.mark.slow
def test_a_bad_file_of_a_lazy_set_is_told_when_it_is_read(folder):
    _spoil(folder)
    data = xl.data.load_folder(folder, PREPROCESS)
    assert data.bad == ()
    with pytest.raises(DataError, match=r"cat/00.png.*--skip-bad"):
        list(iterate_batches(data, 5))
    assert ["00.png" in line for line in data.bad] == [True]
    data = xl.data.load_folder(folder, PREPROCESS, skip_bad=True)
    batches = list(iterate_batches(data, 5))
    assert [len(batch.inputs) for batch in batches] == [4, 5, 5, 4, 5, 4, 5, 1]
    assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == [11, 11, 11]
    list(iterate_batches(data.subset(torch.arange(20)), 5))
    assert len(data.bad) == 3  # each is told once


def test_folders_that_do_not_fit(folder, tmp_path):
    for load, message in ((xl.data.load_folder, "no folder"), (xl.data.load_unlabelled, "no file or folder")):
        with pytest.raises(DataError, match=message):
            load(tmp_path / "none", PREPROCESS)
    (tmp_path / "one" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"1 class folder\(s\)"):
        xl.data.load_folder(tmp_path / "one", PREPROCESS)
    (tmp_path / "one" / "dog").mkdir()
    with pytest.raises(DataError, match="no image files"):
        xl.data.load_folder(tmp_path / "one", PREPROCESS)
    with pytest.raises(DataError, match="the network does not"):
        xl.data.load_folder(folder, PREPROCESS, classes=("cat", "dog"))


def test_torchvision_sets(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="download=True"):
        xl.data.load_torchvision("CIFAR10", tmp_path, train=True)
    with pytest.raises(InputError, match="no data set"):
        xl.data.load_torchvision("CIFAR1", tmp_path, train=True)

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
