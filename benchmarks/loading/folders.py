"""Folders of JPEG files made from noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10


def make_small(root: Path, count: int, side: int = 32) -> Path:
    """``count`` small pictures in ten classes, every file with bytes of its own."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for i in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        picture.save(root / f"class{i % CLASSES}" / f"{i:06}.jpg", quality=85)
    return root


def make_photographs(root: Path, count: int, width: int = 500, height: int = 375) -> Path:
    """``count`` pictures in ten classes with detail at every scale, as photographs have; about 60 kB each."""
    rng = np.random.default_rng(1)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for i in range(count):
        pixels = np.zeros((height, width, 3), np.float32)
        for cells in (4, 8, 16, 32, 64, 128):
            noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pixels += (np.asarray(layer, np.float32) - 128) * (3 / cells) ** 0.5
        picture = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
        picture.save(root / f"class{i % CLASSES}" / f"{i:04}.jpg", quality=90)
    return root
