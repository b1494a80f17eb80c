"""Trains the small network that runs on the documentation's start page, and picks six scenes for it.

Usage: python scripts/train_live_example.py [--ort DIR] [--out website/live]

Some minutes on one core. Needs the extra onnx, and npm for onnxruntime-web or a folder with its files (--ort). A narrow network is
trained with Explanation-Guided Training on the bundled scenes, its policy is certified, and `exitlens.export_web` writes it; of what
that writes, only the network's own files are kept. The page and onnxruntime-web are added when the documentation is built.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

import exitlens as xl
from exitlens.model.backbones.small import SmallResNet

STEM, WIDTHS = 16, (24, 40, 56, 64)
KEPT = ("cascade.onnx", "network.json")
EACH = 2  # scenes of each kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ort", type=Path)
    parser.add_argument("--out", type=Path, default=Path("website/live"))
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    train, val, cal, test = (xl.demo.load_scenes(split) for split in ("train", "validation", "calibration", "test"))
    net = build(train)
    xl.fit(net, train, val, loss=xl.EGTLoss(), epochs=given.epochs)
    policy = xl.calibrate(xl.collect(net, cal), max_accuracy_drop=0.01, delta=0.1)
    print(policy.certificate())
    trace = xl.collect(net, test)
    print(xl.evaluate(trace, policy))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "certificate.txt").write_text(policy.certificate() + "\n")
    scenes = write_scenes(test, trace, policy, given.out)
    with tempfile.TemporaryDirectory() as folder:
        written = xl.export_web(net, policy, Path(folder) / "web", ort=given.ort, examples=scenes)
        for name in KEPT:
            shutil.copyfile(written / name, given.out / name)


def build(train: xl.data.ImageSet) -> xl.ExitNet:
    torch.manual_seed(0)
    backbone = SmallResNet(len(train.classes), stem=STEM, widths=WIDTHS)
    net = xl.attach(backbone, list(backbone.groups[:-1]), len(train.classes), train.first(1).inputs, head="context")
    net.describe(classes=train.classes, preprocess=train.preprocess)
    return net


def write_scenes(test: xl.data.ImageSet, trace: xl.Trace, policy: xl.Policy, out: Path) -> list[Path]:
    """The first test scenes of six classes: two that leave at the first exit, two in between, two at the final one."""
    exits, written, seen = xl.route(trace, policy), list[Path](), set[int]()
    for kind in (exits == 0, (exits > 0) & (exits < trace.num_exits - 1), exits == trace.num_exits - 1):
        wanted = len(written) + EACH
        for row in kind.nonzero().flatten().tolist():
            label = int(test.labels[row])
            if len(written) < wanted and label not in seen:
                seen.add(label)
                written.append(out / f"{len(written) + 1}-{test.classes[label].lower().replace(' ', '-')}.png")
                Image.fromarray(test.images[row].permute(1, 2, 0).numpy()).save(written[-1], optimize=True)
    return written


if __name__ == "__main__":
    main()
