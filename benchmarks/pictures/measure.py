"""What a network is worth on drawings that its training did not see, and two networks of one seed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.pictures.train import load_pictures, train
from exitlens.functional.attribution import energy_in_mask
from exitlens.io import read_tensors, write_tensors

LIMITS = (0.02, 0.03, 0.05)  # accuracy drops, chosen on calibration data
DELTA = 0.1
RESAMPLES = 2000
ANSWERS = "answers.safetensors"
SAMPLES = 256  # for the maps


def measure_network(kind: str, seed: int, folder: Path, runs: Path, trained: Path) -> dict[str, Any]:
    """Measures one network, trained if it was not; its answers to the test pictures stay in ``runs``."""
    (out := runs / f"{kind}-{seed}").mkdir(parents=True, exist_ok=True)
    net, result = train(kind, seed, folder, trained / "fit")
    test = load_pictures(folder, "test")
    trace = xl.collect(net, test.images)
    report = xl.evaluate(trace, xl.Policy.never(net.num_exits))
    right = trace.logits.argmax(2) == test.images.labels[:, None]  # (N,K)
    write_tensors(out / ANSWERS, {"right": right.to(torch.uint8), "drawings": test.drawings}, {})
    found: dict[str, Any] = {
        "epochs": len(result.history),
        "seconds_an_epoch": round(result.seconds / len(result.history), 1),
        "pictures": len(test.images),
        "drawings": len(test.drawings.unique()),
        "cost": net.cost.tolist(),
        "accuracy": [row.accuracy for row in report.exits],
        "accuracy_error": spread_by_drawing(right.double(), test.drawings).tolist(),
        "validation": result.history[-1]["accuracy"],
    }
    if kind == "exits":
        found["skill"] = [row.consistency["cc"]["skill"] for row in report.exits[:-1]]
        found["head_share"] = net.head_share
        found |= measure_maps(net, test.images)
        calibration = load_pictures(folder, "calibration")
        traced = xl.collect(net, calibration.images, groups=calibration.drawings)
        found |= {"calibration_pictures": len(traced), "calibration_drawings": len(calibration.drawings.unique())}
        found["policies"] = {name: try_policy(traced, trace, limit, named) for name, limit, named in list_policies()}
    return found


def measure_maps(net: xl.ExitNet, images: xl.ImageSet) -> dict[str, Any]:
    """How much of every exit's attention lies on the drawing, beside the drawing's share of the picture."""
    sample = images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SAMPLES])
    assert sample.masks is not None
    with torch.inference_mode():
        maps = [
            net.info.place(k, torch.cat(parts))
            for k, parts in enumerate(zip(*([o.attention for o in net(x)] for x in sample.inputs.split(64)), strict=True))
        ]
    energy = [energy_in_mask(one.float(), sample.masks).mean().item() for one in maps]
    return {"area": sample.masks.float().mean().item(), "energy": energy}


def list_policies() -> list[tuple[str, float, bool]]:
    """Name, limit of the accuracy drop, and whether calibration is told which pictures show the same drawing."""
    pairs = [(limit, named) for limit in LIMITS for named in (True, False)]
    return [(f"{limit}, {'by drawing' if named else 'by picture'}", limit, named) for limit, named in pairs]


def try_policy(calibration: xl.Trace, test: xl.Trace, limit: float, named: bool) -> dict[str, Any]:
    """A certified policy, and what it costs and loses on the test pictures."""
    trace = calibration if named else xl.Trace(**{**vars(calibration), "groups": None})
    policy = xl.calibrate(trace, max_accuracy_drop=limit, delta=DELTA)
    report = xl.evaluate(test, policy)
    return {
        "cost": report.cost,
        "accuracy": report.accuracy,
        "drop": report.accuracy_drop,
        "exit_shares": list(report.exit_shares),
    }


def compare(seed: int, runs: Path) -> dict[str, Any]:
    """Final exit minus plain network on the same pictures, and the standard error over drawings."""
    (plain, drawings), (exits, _) = (read_answers(runs / f"{kind}-{seed}" / ANSWERS) for kind in ("plain", "exits"))
    difference = exits[:, -1:].double() - plain[:, -1:].double()
    return {"difference": difference.mean().item(), "error": spread_by_drawing(difference, drawings).item()}


def read_answers(path: Path) -> tuple[Tensor, Tensor]:  # -> (N,K) uint8, (N,)
    """Which answers were right, and the drawing of every picture."""
    tensors, _ = read_tensors(path)
    return tensors["right"], tensors["drawings"]


def spread_by_drawing(values: Tensor, drawings: Tensor) -> Tensor:  # (N,K), (N,) -> (K,)
    """Standard error of the means over pictures, if other drawings had been drawn (bootstrap of whole drawings)."""
    ids, place = drawings.unique(return_inverse=True)
    sums = torch.zeros(len(ids), values.shape[1], dtype=torch.float64).index_add_(0, place, values.double())
    counts = place.bincount(minlength=len(ids)).double()
    draws = torch.randint(len(ids), (RESAMPLES, len(ids)), generator=torch.Generator().manual_seed(0))
    return (sums[draws].sum(1) / counts[draws].sum(1)[:, None]).std(0)
