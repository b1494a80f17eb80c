import json
from pathlib import Path

import pytest
import torch

import exitlens as xl
import exitlens_demo_data
from exitlens.data import fashion
from exitlens.data.fashion import CLASSES, load_garments
from exitlens.data.splits import SPLITS

IMAGES = Path(exitlens_demo_data.__file__).parent


def test_splits_are_balanced_disjoint_and_of_the_promised_size():
    sizes = {"train": 12_000, "validation": 1_000, "calibration": 2_000, "test": 3_000}
    seen: set[bytes] = set()
    total = 0
    for split in SPLITS:
        garments, labels = load_garments(split)
        assert garments.shape == (sizes[split], 28, 28)
        assert garments.dtype == torch.uint8
        assert labels.bincount().tolist() == [sizes[split] // 10] * 10
        total += len(garments)
        seen |= {image.numpy().tobytes() for image in garments}
    assert total - len(seen) <= 20  # the original set itself holds a few duplicates


def test_the_images_are_small_licensed_and_apart_from_the_library():
    assert sum(p.stat().st_size for p in IMAGES.iterdir() if p.is_file()) < 8_000_000
    assert "MIT License" in (Path(__file__).parents[2] / "demo-data" / "LICENSE.fashion-mnist").read_text()
    assert set(json.loads((IMAGES / "fashion.json").read_text())["splits"]) == set(SPLITS)
    assert not [p for p in Path(xl.__file__).parent.rglob("*.png") if p.stat().st_size > 100_000]


@pytest.mark.parametrize("load", [lambda: xl.load_fashion("test"), lambda: xl.load_scenes("train", limit=3)])
def test_without_the_images_an_error_names_the_extra(load, no_images):
    with pytest.raises(xl.MissingExtraError, match=r"garments .*'exitlens_demo_data'.* pip install 'exitlens\[demo\]'"):
        load()


def test_a_damaged_file_is_found(monkeypatch, tmp_path):
    for name in ("fashion.json", "fashion_validation.png"):
        (tmp_path / name).write_bytes((IMAGES / name).read_bytes()[: None if name.endswith("json") else -9])
    monkeypatch.setattr(fashion, "files", lambda package: tmp_path)
    with pytest.raises(xl.DataError, match="damaged"):
        load_garments("validation")


def test_unknown_split():
    with pytest.raises(xl.InputError, match="split"):
        xl.load_scenes("dev")


def test_fashion_is_grey():
    data = xl.load_fashion("validation")
    assert data.images.shape == (1000, 1, 28, 28)
    assert data.classes == CLASSES
