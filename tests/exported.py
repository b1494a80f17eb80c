"""ONNX files of equal segments are written once in a test run and copied: PyTorch's exporter takes a second for each."""

import functools
import hashlib
import http.server
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from PIL import Image
from torch import nn

import exitlens as xl
from exitlens.model.engine import onnx_files as files


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a .npz file, which is closed then."""
    with np.load(path) as file:
        return dict(file)


def write_once(folder: Path) -> Callable[..., list[files.Written]]:
    """Return ``write_segments`` with a memory in ``folder``, which all workers of a run share."""

    def write_or_copy(directory: Path, segments: Any, examples: Any, names: Any) -> list[files.Written]:
        digest = hashlib.sha256(repr((list(names), [(segment.exit, len(segment.bodies)) for segment in segments])).encode())
        digest.update(repr({n: [tuple(t.shape) for t in batch] for n, batch in examples.items()}).encode())
        for segment in segments:
            for name, value in segment.state_dict().items():
                digest.update(name.encode() + value.numpy().tobytes())
            digest.update("".join(body.code for body in segment.bodies).encode())
        kept = folder / digest.hexdigest()
        with FileLock(kept.with_suffix(".lock")):
            if not (kept / "written").exists():
                kept.mkdir(exist_ok=True)
                (kept / "written").write_bytes(pickle.dumps(write(kept, segments, examples, names)))
        written: list[files.Written] = pickle.loads((kept / "written").read_bytes())
        return [file._replace(path=Path(shutil.copy(file.path, directory))) for file in written]

    write = files.write_segments
    return write_or_copy


def check_answers(answers: Any, expected: xl.Prediction, tolerance: float = 1e-5) -> None:
    """Compare a prediction of the runtime, or the outputs of a cascade in one file, with the library's prediction."""
    values = answers if isinstance(answers, dict) else vars(answers) | {"scores": answers.confidence}
    assert np.asarray(values["exits"]).tolist() == expected.exits.tolist()
    assert np.array_equal(np.asarray(values["labels"]), expected.labels.numpy())
    for name, wanted in (("scores", expected.confidence), ("probabilities", expected.probabilities)):
        if name in values:
            np.testing.assert_allclose(values[name], wanted.numpy(), rtol=1e-5, atol=tolerance)
    for i, k in enumerate(expected.exits.tolist() if expected.attention else ()):
        maps = values["attention"] if "attention" in values else values[f"attention_{k}"]
        assert np.abs(maps[i] - expected.attention[i].numpy()).max() < 1e-4  # type: ignore[index]


@contextmanager
def serve_page(net: xl.ExitNet, policy: xl.Policy, folder: Path, **options: Any) -> Iterator[str]:
    """Write the page for browsers and serve it; without a browser or npm's files the test is skipped."""
    pytest.importorskip("playwright")
    if shutil.which("chromium") is None or shutil.which("npm") is None:
        pytest.skip("no Chromium or npm")
    try:
        path = xl.export_web(net, policy, folder, **options)
    except xl.errors.ExportError as error:
        pytest.skip(f"npm has no onnxruntime-web: {error}")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def ask_page(address: str, pictures: Sequence[Path]) -> Iterator[tuple[Any, list[list[str]]]]:
    """Open the page in a browser and give it pictures; yield it with the rows of its table, picture by picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=60000)
        page.set_input_files("#files", [str(path) for path in pictures])
        page.wait_for_selector(f"body:not([data-busy]) #rows tr:nth-child({len(pictures)})", timeout=60000)
        rows = "[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))"
        yield page, page.evaluate(rows)
        browser.close()


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """Write random pictures of 16 x 16 pixels."""
    rng, paths = np.random.default_rng(0), [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return paths


def read_pictures(net: xl.ExitNet, paths: Sequence[Path]) -> torch.Tensor:
    """Return the pictures as the network's inputs."""
    return torch.stack(
        [net.info.preprocess.normalise(xl.data.read_image(path, net.info.preprocess.size, 3)) for path in paths]
    )


class ImageEncoder(nn.Module):
    """Numbers, or the normalised mean of the last features, of images of 16 x 16 pixels."""

    def __init__(self, numbers: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.last = nn.Conv2d(6, 8, 3, 2, 1)
        self.out = nn.Linear(8, numbers) if numbers else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.first(x)).mean((2, 3))
        return F.normalize(x, dim=1) if self.out is None else self.out(x)


def make_continuous(numbers: int) -> xl.ExitNet:
    """A network for images that answers numbers, or a vector for none."""
    torch.manual_seed(0)
    task, final = ("regression", "head") if numbers else ("embedding", "keep")
    net = xl.attach(ImageEncoder(numbers), ["first"], numbers or 8, torch.zeros(1, 3, 16, 16), task=task, final=final).eval()
    names = {"classes": ("length", "width"), "units": ((50.0, 20.0), (0.0, 1.0))} if numbers else {}
    net.describe(preprocess=xl.data.Preprocess((16, 16)), **names)
    return net
