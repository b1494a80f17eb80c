"""Builds the Fashion-MNIST subset of demo-data from the original four files and checks their SHA-256 first.

Usage: python scripts/build_fashion.py --root DIR [--out demo-data/src/exitlens_demo_data]

DIR holds train-images-idx3-ubyte.gz and the other three: /usr/share/datasets/fashion-mnist after
``apt-get install dataset-fashion-mnist``, or FashionMNIST/raw of torchvision's download.
The train, validation and calibration splits come from the original training files, the test split from the original
test files; all are class-balanced, disjoint, and drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
SPLITS = {"train": 12_000, "validation": 1_000, "calibration": 2_000, "test": 3_000}
COLUMNS = 100  # garments in a row of the sheet
SEED = 2601


def read_idx(root: Path, name: str, header: int) -> np.ndarray:
    raw = (root / name).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHA256[name]:
        raise SystemExit(f"{root / name}: SHA-256 is {digest}, expected {SHA256[name]}: not the original file")
    return np.frombuffer(gzip.decompress(raw), np.uint8, offset=header)


def draw(labels: np.ndarray, count: int, used: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` unused items, the same number of each class, in random order."""
    per_class = count // 10
    picks = [rng.permutation(np.flatnonzero((labels == c) & ~used))[:per_class] for c in range(10)]
    chosen = rng.permutation(np.concatenate(picks))
    used[chosen] = True
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("demo-data/src/exitlens_demo_data"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    manifest: dict[str, object] = {"seed": SEED, "columns": COLUMNS, "source_sha256": SHA256, "splits": {}}
    sources = {}
    for part in ("train", "t10k"):
        images = read_idx(args.root, f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(args.root, f"{part}-labels-idx1-ubyte.gz", 8)
        sources[part] = (images, labels, np.zeros(len(labels), bool))
    for split, count in SPLITS.items():
        part = "t10k" if split == "test" else "train"
        images, labels, used = sources[part]
        chosen = draw(labels, count, used, rng)
        rows = count // COLUMNS
        sheet = images[chosen].reshape(rows, COLUMNS, 28, 28).transpose(0, 2, 1, 3).reshape(rows * 28, COLUMNS * 28)
        path = args.out / f"fashion_{split}.png"
        Image.fromarray(sheet).save(path, optimize=True)
        manifest["splits"][split] = {  # type: ignore[index]
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "labels": "".join(str(int(v)) for v in labels[chosen]),
            "source": part,
            "indices_sha256": hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest(),
        }
    (args.out / "fashion.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"wrote {sum(p.stat().st_size for p in args.out.glob('fashion*')) / 1e6:.2f} MB to {args.out}")


if __name__ == "__main__":
    main()
