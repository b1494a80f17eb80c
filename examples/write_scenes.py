"""Writes scenes made of demo-data as files, for those without pictures: python examples/write_scenes.py FOLDER.

Garments on coloured backgrounds, 3,000 in ten subfolders, one for each class (some seconds, 12 MB).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import exitlens as xl


def main() -> None:
    """Writes ``FOLDER/CLASS/00000.png`` and so on."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "photos")
    scenes = xl.demo.load_scenes("train", limit=3000)
    for name in scenes.classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (pixels, label) in enumerate(zip(scenes.images, scenes.labels.tolist(), strict=True)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / scenes.classes[label] / f"{i:05}.png")
    print(f"{len(scenes.images):,} pictures in {folder}")


if __name__ == "__main__":
    main()
