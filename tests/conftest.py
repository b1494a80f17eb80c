"""Small networks and data that every test module uses."""

import copy
import gc
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", "/tmp/exitlens-matplotlib")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; tests need no network

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from PIL import Image
from torch import Tensor, nn

import exitlens as xl
from exitlens.delivery import bundle
from exitlens.functional.pixels import count_confusion
from exitlens.model.process import keep_memory
from exitlens.types.inputs import Inputs
from tests.exported import write_once
from tests.ranks import call

gc.disable()  # while tests are collected
torch.set_num_threads(1)
LONGEST = (  # first to last, as the slow ones take
    *("serving/test_ray.py", "cli/test_texts.py", "cli/test_training.py", "explorer/test_browser.py", "test_readme.py"),
    *("delivery/test_report.py", "test_examples.py", "explorer/test_interface.py", "backbones/test_build.py"),
    *("training/test_fit.py", "tests/test_kinds.py", "cli/test_answering.py", "edge/test_web.py", "test_start.py"),
)

if "CI" not in os.environ:  # where Hypothesis has a profile of its own
    busy = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
    hypothesis.settings.register_profile("busy", **busy)
    hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, the longest at the head, so that short ones are left to share at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {
        path: i for path in {item.path for item in items} for i, end in enumerate(LONGEST) if path.as_posix().endswith(end)
    }
    items.sort(key=lambda item: (rank.get(item.path, len(LONGEST)), item.path not in slow))


def pytest_collection_finish() -> None:
    """What was imported and collected is never searched for garbage, and the rest seldom: it took a tenth of all time."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()


class TinyNet(nn.Module):
    """Three convolutions and a classifier: cuts after ``a`` and ``b``."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 10, 3, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.c(self.b(self.a(x)))).flatten(1))


@pytest.fixture(autouse=True)
def _same_process_for_every_test() -> None:
    """Neither random numbers nor the memory that malloc keeps depend on the tests that ran before."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes 0.1 ms, for devices that tests do not use
    keep_memory(False)


class TinyUNet(nn.Module):
    """An encoder of three maps and a decoder with two skip connections; answers one of four classes a pixel."""

    def __init__(self, classes: int = 4, returns: str = "") -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _block(3, 6), _block(6, 8), _block(8, 10)
        self.up2, self.up1 = _block(18, 8), _block(14, 6)
        self.out, self.returns = nn.Conv2d(6, classes, 1), returns

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        low = self.bottom(F.max_pool2d(second, 2))
        x = self.up2(torch.cat([F.interpolate(low, second.shape[2:]), second], 1))
        x = self.out(self.up1(torch.cat([F.interpolate(x, first.shape[2:]), first], 1)))
        return {self.returns: x} if self.returns else x


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


@pytest.fixture
def backbone() -> nn.Module:
    return TinyNet()


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if exitlens-demo-data were not installed."""
    monkeypatch.setitem(sys.modules, "exitlens_demo_data", None)


def make_net(final: str = "head") -> xl.ExitNet:
    """A tiny network whose exits disagree: random heads with some spread, so that routing has something to do.

    Built once in a process, and copied. The random state afterwards is always the same.
    """
    built = _build_net(final)
    torch.default_generator.manual_seed(1)
    net = copy.deepcopy(built)
    net.__dict__["_source"] = copy.deepcopy(built.__dict__["_source"])
    return net


@cache
def _build_net(final: str) -> xl.ExitNet:
    torch.manual_seed(1)
    net = xl.attach(TinyNet(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16), final=final).eval()
    for k in range(net.num_exits - (final == "keep")):
        nn.init.normal_(net.head(k).attend.weight)
        nn.init.normal_(net.head(k).classifier.weight, std=4.0)
    return net


def make_unet(final: str = "head") -> xl.ExitNet:
    """A tiny U-Net with exits in its encoder, for 4 classes of pixels; built once in a process, and copied."""
    net = copy.deepcopy(_build_unet(final))
    torch.default_generator.manual_seed(1)
    return net


@cache
def _build_unet(final: str) -> xl.ExitNet:
    torch.manual_seed(1)
    net = xl.attach(TinyUNet(), ["down1", "bottom"], 4, torch.zeros(1, 3, 16, 16), final=final).eval()
    for k in range(net.num_exits - (final == "keep")):
        nn.init.normal_(net.head(k).classifier.weight, std=2.0)
    return net


@pytest.fixture
def net() -> xl.ExitNet:
    return make_net()


@pytest.fixture
def kept() -> xl.ExitNet:
    return make_net("keep")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def tiny_set() -> xl.data.ImageSet:
    return make_tiny_set()


def make_tiny_set(count: int = 32) -> xl.data.ImageSet:
    """Images of four classes, brighter from class to class, with masks."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 60, (count, 3, 16, 16), generator=rng)
    pixels += (labels * 40)[:, None, None, None]
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    return xl.data.ImageSet(pixels.to(torch.uint8), labels, ("w", "x", "y", "z"), masks)


def make_pixel_set(count: int = 32) -> xl.data.ImageSet:
    """Images of a bright, a red or a blue square on noise, with the class of every pixel; an edge of them has none."""
    rng = torch.Generator().manual_seed(4)
    kinds = torch.arange(count) % 3
    pixels = torch.randint(0, 80, (count, 3, 16, 16), generator=rng)
    labels = torch.zeros(count, 16, 16, dtype=torch.int64)
    for i, kind in enumerate(kinds.tolist()):
        top, left, side = torch.randint(1, 6, (3,), generator=rng).tolist()
        where = (slice(top, top + side + 4), slice(left, left + side + 4))
        channels = ([0, 1, 2], [0], [2])[kind]
        for channel in channels:
            pixels[i, channel][where] += 150
        labels[i][where] = kind + 1
    labels[:, 0] = 255
    return xl.data.ImageSet(pixels.to(torch.uint8), labels, ("none", "bright", "red", "blue"))


def random_pixel_trace(n: int = 200, k: int = 3, c: int = 3, seed: int = 0, **values: Any) -> xl.Trace:
    """A trace of images of 64 pixels in which later exits, and surer ones, are better."""
    rng = torch.Generator().manual_seed(seed)
    sure = torch.rand(n, k, generator=rng)
    right = 0.3 + 0.3 * sure + 0.4 * torch.linspace(0, 1, k)
    labels = torch.randint(0, c, (n, 64), generator=rng)
    other = (labels[:, None] + torch.randint(1, c, (n, k, 64), generator=rng)) % c
    answers = torch.where(torch.rand(n, k, 64, generator=rng) < right[..., None], labels[:, None], other)
    counts = torch.stack([count_confusion(answers[:, i], labels, c) for i in range(k)], 1)
    differs = (answers != answers[:, -1:]).float().mean(2)
    kept = xl.types.PixelSummary(sure[..., None].repeat(1, 1, 3), torch.randn(n, k, c, generator=rng), differs, counts)
    return xl.Trace(kept, None, torch.zeros(n, k), torch.linspace(0.2, 1.0, k), **values)


def random_trace(n: int = 300, k: int = 3, c: int = 4, seed: int = 0, labelled: bool = True) -> xl.Trace:
    """A trace in which later exits are better."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=rng)
    logits = torch.randn(n, k, c, generator=rng)
    strength = torch.linspace(1.0, 3.0, k)
    logits += strength[None, :, None] * nn.functional.one_hot(labels, c)[:, None]
    divergence = torch.rand(n, k, generator=rng) * torch.linspace(0.6, 0.0, k)
    divergence[:, -1] = 0
    return xl.Trace(logits, labels if labelled else None, divergence, torch.linspace(0.2, 1.0, k))


def make_timing() -> xl.types.ExitLatency:
    """2, 5 and 10.5 ms at three exits."""
    machine = {"processor": "Slow 9000", "device": "cpu"}
    return xl.types.ExitLatency((2.0, 5.0, 10.5), (1.9, 4.9, 10.4), (2.1, 5.1, 10.6), 10.0, 64, 2, machine, 20)


def timed_trace(n: int = 300, **values: Any) -> xl.Trace:
    """:func:`random_trace` with :func:`make_timing`."""
    timing = make_timing()
    return replace(random_trace(n, **values), cost=torch.tensor(timing.cost), timing=timing)


def spread_policy(net: xl.ExitNet, images: Inputs, share: float = 0.4) -> xl.Policy:
    """Thresholds at which about ``share`` of those who come to an exit leave there, half-way between two scores."""
    trace = xl.collect(net, images)
    rest = torch.arange(len(trace.logits))
    thresholds = []
    for k in range(net.num_exits - 1):
        scores = trace.logits[rest, k].softmax(1).amax(1).sort(descending=True)
        count = max(1, int(share * len(rest)))
        thresholds.append((scores.values[count - 1] + scores.values[count]).item() / 2)
        rest = rest[scores.indices[count:]]
    return xl.Policy(tuple(thresholds))


def build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of equal networks are built once and copied: building takes most of the time of loading."""

    def build(info, backbone, heads=None):
        if backbone is not None or heads:
            return original(info, backbone, heads)
        if repr(info) not in _BUILT:
            _BUILT[repr(info)] = original(info, None)
        return copy.deepcopy(_BUILT[repr(info)])

    original = bundle._build
    monkeypatch.setattr(bundle, "_build", build)


_BUILT: dict[str, xl.ExitNet] = {}


def judge_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports judge maps on few samples; judging them on all takes most of the time of a report."""
    few = partial(xl.measure_faithfulness, samples=8, oracle_samples=2)
    monkeypatch.setattr("exitlens.delivery.report.measure_faithfulness", few)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A directory that all workers of one test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def operators_read_once():
    """PyTorch's exporter reads its table of operators anew for every file, which is a third of its time."""
    with pytest.MonkeyPatch.context() as patch, suppress(ImportError, AttributeError):  # private: another version may differ
        from torch.onnx._internal.exporter._registration import onnxscript_apis

        patch.setattr(onnxscript_apis, "get_torchlib_ops", cache(onnxscript_apis.get_torchlib_ops))
        yield
        return
    yield


@pytest.fixture(scope="module")
def files_written_once(shared, operators_read_once):
    """ONNX files are copied where they were written before."""
    export, engine = pytest.importorskip("exitlens.edge.export"), pytest.importorskip("exitlens.model.engine.onnx_files")
    (shared / "onnx").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for module in (export, engine):
            patch.setattr(module, "write_segments", write_once(shared / "onnx"))
        yield


@pytest.fixture(scope="session")
def folder(shared) -> Path:
    """60 images in two classes; not to be changed."""
    root = shared / "images"
    with FileLock(shared / "images.lock"):
        if not root.exists():
            rng = np.random.default_rng(0)
            for c, name in enumerate(("dark", "bright")):
                (shared / "images.new" / name).mkdir(parents=True)
                for i in range(30):
                    pixels = rng.integers(0, 90, (32, 32, 3)) + 140 * c
                    Image.fromarray(pixels.astype(np.uint8)).save(shared / "images.new" / name / f"{i:02}.png")
            (shared / "images.new").rename(root)
    return root


@pytest.fixture(scope="session")
def trained_once(shared, folder) -> Path:
    """A run directory made by the command line, with a policy; not to be changed."""
    out = shared / "trained" / "x"
    with FileLock(shared / "trained.lock"):
        if not (out / "done").exists():
            words = ["fit", "--data", folder, "--out", out, "--size", "32", "--epochs", "1", "--batch-size", "16", "--json"]
            for line in (words, ["calibrate", "--bundle", out, "--max-accuracy-drop", "0.5", "--json"]):
                code, printed, told = call(list(map(str, line)))
                assert code == 0, told
                json.loads(printed)
            (out / "done").touch()
    return out


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory) -> Path:
    """A copy of that run, for one test module."""
    return Path(shutil.copytree(trained_once, tmp_path_factory.mktemp("runs") / "x"))


def write_pixel_folder(root: Path, data: xl.data.ImageSet) -> Path:
    """Write images, and the classes of their pixels as pictures of indices, as ``root/images``, ``root/masks``."""
    for name, pictures in (("images", data.images.permute(0, 2, 3, 1)), ("masks", data.labels)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture.numpy()).save(root / name / f"{i:02d}.png")
    (root / "classes.txt").write_text("\n".join(data.classes) + "\n")
    return root
