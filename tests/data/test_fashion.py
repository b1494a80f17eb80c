import json
from pathlib import Path

import pytest
import torch

import exitlens as xl
from exitlens.data import fashion
from exitlens.data.fashion import CLASSES, load_garments
from exitlens.data.splits import SPLITS


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


def test_assets_fit_in_the_wheel():
    assets = Path(fashion.__file__).parent / "assets"
    assert sum(p.stat().st_size for p in assets.iterdir()) < 8_000_000
    assert "MIT License" in (assets / "LICENSE.fashion-mnist").read_text()
    assert set(json.loads((assets / "fashion.json").read_text())["splits"]) == set(SPLITS)


def test_a_damaged_file_is_found(monkeypatch, tmp_path):
    source = Path(fashion.__file__).parent / "assets"
    (tmp_path / "assets").mkdir()
    for name in ("fashion.json", "fashion_validation.png"):
        (tmp_path / "assets" / name).write_bytes((source / name).read_bytes()[: None if name.endswith("json") else -9])
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
