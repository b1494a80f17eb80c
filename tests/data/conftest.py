"""A folder of images, for every test here that needs one."""

import numpy as np
import pytest
from PIL import Image

import exitlens as xl

PREPROCESS = xl.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


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
