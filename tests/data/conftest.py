"""Tiny images, series, tables and tar files, made when a test asks for them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import exitlens as xl
from exitlens.data.sources import open_source

PREPROCESS = xl.data.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
SMALL = xl.data.Preprocess((8, 8), (0.5,) * 3, (0.25,) * 3)
CLASSES = ("ant", "bee")
TS = """# a comment
@problemName tiny
@timeStamps false
@univariate false
@dimensions 2
@equalLength true
@classLabel true run Walk
@data
1,2,3:4,5,6:run
7,8,9:10,11,12:Walk
"""


class Pixels(list):
    """A reader, so that images are read while they are asked for."""

    def read(self, index):
        return self[index]


def encode(number, mode="RGB", size=(10, 12), kind="PNG"):
    """An image whose first pixel tells which one it is."""
    pixels = np.full((*size, 3), number % 256, dtype=np.uint8)
    found = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(found, kind)
    return found.getvalue()


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def write_rows(path, rows):
    """A CSV or JSON Lines file of dicts with the same keys."""
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines if path.suffix == ".csv" else map(json.dumps, rows)) + "\n")
    return path


def read_numbers(data):
    """Which images are in a set: see :func:`encode`."""
    return (data.preprocess.restore(data.inputs)[:, 0, 0, 0] * 255).round().int().tolist()


def write_tar(path, members):
    """A tar file of ``(name, bytes)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def list_members(numbers, **values):
    """Members of samples: image ``number``, its class and its patient."""
    for i in numbers:
        yield f"{i:04}.png", encode(i)
        yield f"{i:04}.json", json.dumps({"label": CLASSES[i % 2], "patient": i // 4, **values}).encode()


def check_refused(name, error, message, split="train", **settings):
    """Loading a split of a source has to fail."""
    with pytest.raises(error, match=message):
        open_source(str(name), **settings).load(split)


@pytest.fixture
def hf(tmp_path_factory, monkeypatch):
    """The package, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return datasets


@pytest.fixture
def make_table(hf):
    """Makes a data set of N images with a class, a patient for each four, and file names."""

    def make(count=40, start=0):
        rows = range(start, start + count)
        features = {"image": hf.Image(), "label": hf.ClassLabel(names=list(CLASSES)), "patient": hf.Value("string")}
        values = {
            "image": [{"bytes": encode(i), "path": f"p{i // 4}_{i}.png"} for i in rows],
            "label": [i % 2 for i in rows],
            "patient": [f"p{i // 4}" for i in rows],
        }
        return hf.Dataset.from_dict(values, features=hf.Features(features))

    return make


@pytest.fixture
def folder(tmp_path):
    """36 images in three classes, to be changed at will."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02}.png")
    return tmp_path / "data"


@pytest.fixture
def series_folder(tmp_path):
    """24 series of two channels and 30 steps in two classes, as ``.npy``; the second class is larger."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("calm", "wild")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            values = rng.normal(5, 1 + 3 * label, (2, 30)).astype(np.float32)
            np.save(tmp_path / "data" / name / f"p{i // 3}_{i:02}.npy", values)
    return tmp_path / "data"
