"""int8 against float32 in ONNX Runtime on one core: times, and labels at equal exits on new scenes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import exitlens as xl
from benchmarks.edge.networks import BUNDLE, RESNET
from benchmarks.performance.networks import make_scenes
from exitlens.data.demo.garments import CLASSES, load_garments
from exitlens.delivery.bench.timing import pin_threads, time_calls
from exitlens.edge.export import write_stages
from exitlens.edge.int8 import quantise
from exitlens.model.engine.onnx_files import Written, open_file
from exitlens.model.timing import describe_machine, interleave

TEST, SAMPLES, TRAINED, PIXELS = 2_000, 256, 3_000, 160
Array = np.ndarray[Any, Any]


class Walk:
    """All stages one after the other; logits of every exit."""

    def __init__(self, files: Sequence[Written]) -> None:
        self.steps = [(open_file(one.path), one) for one in files]

    def __call__(self, images: Array) -> list[Array]:
        tensors, logits = {self.steps[0][1].inputs[0]: images}, []
        for session, one in self.steps:
            found = session.run(list(one.outputs), tensors)
            logits.append(found[0])
            tensors = dict(zip(one.outputs[2:], found[2:], strict=True))
        return logits


def measure_int8(name: str, seconds: float = 15.0, test: int = TEST) -> dict[str, Any]:
    """The demo's network, or a ResNet-18 that was trained for one epoch on the same scenes at 160 pixels."""
    net = xl.load(BUNDLE)[0] if name == "demo" else train_resnet()
    side = net.info.input_shape[-1]
    samples, images = (enlarge(make_scenes(net, n, seed=seed), side) for n, seed in ((SAMPLES, 21), (test, 22)))
    with tempfile.TemporaryDirectory() as folder, pin_threads(1):
        directories = [Path(folder) / kind for kind in ("float32", "int8")]
        for one in directories:
            one.mkdir()
        full = Walk(write_stages(directories[0], net, xl.Policy((0.0,) * (net.num_exits - 1))))
        small = Walk(quantise(net, samples, directories[1])[1])
        labels = [
            np.concatenate([np.stack([one.argmax(1) for one in walk(batch.numpy())]) for batch in images.split(50)], 1)
            for walk in (full, small)
        ]
        found: dict[str, Any] = {"machine": describe_machine(1), "int8_instructions": find_instructions()}
        found["agreement"] = (labels[0] == labels[1]).mean(1).tolist()
        for size in (1, 32):
            batches = [one.numpy() for one in images[: max(size, 16)].split(size)]
            works = {"float32": time_calls(full, batches), "int8": time_calls(small, batches)}
            times = interleave(works, rounds=5, seconds=seconds, most=200)
            found[str(size)] = times.ratio("float32", "int8").to_list()
        sizes = [sum(path.stat().st_size for path in one.glob("*.onnx")) / 1e6 for one in directories]
        found["megabytes"] = dict(zip(("float32", "int8"), sizes, strict=True))
    return found


def train_resnet() -> xl.ExitNet:
    """With random weights there are no labels to agree on."""
    torch.manual_seed(0)
    garments, labels = load_garments("train")
    made = xl.make_scenes(garments[:TRAINED], labels[:TRAINED], CLASSES, background_agreement=0.8, seed=5)
    big = interpolate(made.images.float(), size=(PIXELS, PIXELS), mode="bilinear").round().to(torch.uint8)
    images = xl.ImageSet(big, made.labels, CLASSES)
    parts = images.subset(torch.arange(TRAINED - 200)), images.subset(torch.arange(TRAINED - 200, TRAINED))
    net = xl.attach(
        xl.build_backbone("torchvision:resnet18", len(CLASSES)), RESNET, len(CLASSES), images.subset(torch.arange(1)).inputs
    )
    net.describe(classes=CLASSES, preprocess=images.preprocess)
    xl.fit(net, *parts, epochs=1, batch_size=32, amp=True, channels_last=True)
    return net.eval()


def enlarge(images: Tensor, side: int) -> Tensor:
    """Normalised images in another size."""
    return images if images.shape[-1] == side else interpolate(images, size=(side, side), mode="bilinear")


def find_instructions() -> str:
    """Which of x86's instructions for int8 this processor has."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    known = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return " ".join(known) or "none"
