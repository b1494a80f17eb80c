"""What is served: a small network and a ResNet-50, each with exits and plain, and samples that leave in fixed shares."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exitlens as xl
from benchmarks.edge.networks import RESNET, SHARES, Timed, force_shares

FOLDER = Path("runs/serving")
NETWORKS = {"small": Timed("bundle", 40), "resnet50": Timed("torchvision:resnet50", 160, RESNET)}
LIMITS = {"small": 0.1, "resnet50": 1.0}  # seconds, of 99 % of the answers
EXITS, PLAIN = "exits", "plain"


@dataclass(frozen=True)
class Prepared:
    """Bundles to serve.

    Attributes:
        exits, plain: bundles, tuned alike. onnx: the plain backbone as an ONNX file, for other servers.
        samples: ``(N,C,H,W)`` float32. leaves: ``(N,)`` the exit at which each leaves.
    """

    exits: Path
    plain: Path
    onnx: Path
    samples: np.ndarray[Any, Any]
    leaves: np.ndarray[Any, Any]


def prepare(name: str, threads: int = 1) -> Prepared:
    """Writes the bundles of a network, tuned on so many threads; both sides have ONNX Runtime to choose."""
    folder = FOLDER / f"{name}-{threads}"
    if not (folder / "samples.npz").exists():
        shutil.rmtree(folder, ignore_errors=True)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _write(name, folder)
        finally:
            torch.set_num_threads(before)
    kept = np.load(folder / "samples.npz")
    return Prepared(folder / EXITS, folder / PLAIN, folder / "plain.onnx", kept["samples"], kept["leaves"])


def _write(name: str, folder: Path) -> None:
    plain, net, images = NETWORKS[name].build()
    images = images[:256]
    if net.info.source == "":
        net.describe(source=NETWORKS[name].source)
    net.tune(images[:64])
    policy = force_shares(net, images)
    xl.save(net, policy, folder / EXITS)
    leaves = torch.cat([xl.predict(net, batch, policy).exits for batch in images.split(32)])
    whole = xl.attach(plain, [], net.info.num_classes, images[:1], final="keep")
    whole.describe(source=net.info.source)
    whole.tune(images[:64])
    xl.save(whole, xl.Policy(()), folder / PLAIN)
    torch.onnx.export(
        plain, (images[:2],), folder / "plain.onnx", dynamo=True, verbose=False, input_names=["images"],
        dynamic_shapes=[{0: torch.export.Dim.DYNAMIC}],
    )  # fmt: skip
    shares = [(leaves == k).float().mean().item() for k in range(net.num_exits)]
    if max(abs(share - wanted) for share, wanted in zip(shares, SHARES, strict=True)) > 0.02:
        raise RuntimeError(f"{name}: expected the shares {SHARES}, got {shares}")
    np.savez(folder / "samples.npz", samples=images.numpy(), leaves=leaves.numpy())
