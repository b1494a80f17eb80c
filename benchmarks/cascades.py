"""Cascades: two networks in one, against their own times, and whether everything that runs them answers as they do.

Cells: speed-ENGINE-BATCH, with forced shares, and answers, 10,000 images through library, runtime and server. A quarter of an hour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

import exitlens as xl
import exitlens_runtime
from benchmarks import serving
from benchmarks.harness import Job, Promise, Study, promise_table, show_interval, table, take_turns
from benchmarks.load import Array, Spec, make_infer_request, run_load
from benchmarks.performance import force_shares
from benchmarks.results import Runs, Tree
from benchmarks.servers import start_ours
from exitlens.model.timing import interval

SMALL, LARGE, PIXELS, CLASSES = "torchvision:mobilenet_v3_small", "torchvision:resnet18", 128, 10
SHARES, BATCHES, ENGINES = (0.8, 0.2), (1, 32), ("torch", "onnx")
COUNTS, ROUNDS, ANSWERED, SIDE = {1: 40, 32: 160}, 11, 10_000, 32
EFFICIENCY = 0.93
ENGINE_NAMES = {"torch": "PyTorch", "onnx": "ONNX Runtime"}


def list_cells(quick: bool = False) -> dict[str, Job]:
    rounds = 2 if quick else ROUNDS
    speed = {
        f"speed-{engine}-{batch}": partial(measure_speed, engine, batch, rounds) for engine in ENGINES for batch in BATCHES
    }
    return speed | {"answers": partial(compare_answers, 200 if quick else ANSWERED)}


def make_members(pixels: int) -> Mapping[str, xl.ExitNet]:
    """Return both networks, each with its own classifier as the only exit; of random weights, whose logits differ all the same."""
    torch.manual_seed(0)
    images, members = torch.randn(64, 3, pixels, pixels), {}
    for name, source in (("small", SMALL), ("large", LARGE)):
        backbone = xl.build_backbone(source, CLASSES)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean of all batches
        with torch.no_grad():
            for _ in range(4):
                backbone.train()(images)
            logits = backbone.eval()(images)
            last = [module for module in backbone.modules() if isinstance(module, nn.Linear)][-1]
            last.weight *= 3 / logits.std(0)[:, None]
            last.bias.copy_((last.bias - logits.mean(0)) * 3 / logits.std(0))
        members[name] = xl.attach(backbone, [], CLASSES, images[:1], final="keep")
        members[name].describe(source=source)  # so that a server can build it
    return members


def measure_speed(engine: str, batch: int, rounds: int) -> Tree:
    """Return the time of the cascade, of its members alone, and the ideal over its own: the small one's, and a fifth of the large's."""
    torch.set_num_threads(1)
    members = make_members(PIXELS)
    both, images = xl.cascade(members), torch.randn(COUNTS[batch], 3, PIXELS, PIXELS)
    nets: dict[str, xl.ExitNet] = {**members, "both": both}
    for net in nets.values():
        net.tune(images[:32], backend=engine)  # type: ignore[arg-type]
    policies = {name: xl.Policy(()) for name in members} | {"both": force_shares(both, images, SHARES)}
    works = {name: partial(answer, net, images, policies[name], batch) for name, net in nets.items()}
    seconds = take_turns(works, rounds, clock=time.perf_counter)
    ideal = [small + SHARES[1] * large for small, large in zip(seconds["small"], seconds["large"], strict=True)]
    reached = [best / taken for best, taken in zip(ideal, seconds["both"], strict=True)]
    ms = {name: 1000 * median(values) / len(images) for name, values in seconds.items()}
    gain = [large / taken for large, taken in zip(seconds["large"], seconds["both"], strict=True)]
    return {"ms": ms, "efficiency": interval(reached).to_list(), "over_large": interval(gain).to_list()}


def answer(net: xl.ExitNet, images: Tensor, policy: xl.Policy, batch: int, turn: int) -> None:
    if batch == 1:
        for image in images.split(1):
            xl.predict(net, image, policy)
    else:  # samples that go on wait for company
        for _ in xl.predict_stream(net, images.split(batch), policy):
            pass


def compare_answers(count: int) -> Tree:
    """Count images whose logits are not those of the members to the bit, and answers other than those of ``predict``."""
    members, folder = make_members(SIDE), Path("runs/cascades")
    both, images = xl.cascade(members), torch.randn(count, 3, SIDE, SIDE)
    both.describe(preprocess=xl.data.Preprocess((SIDE, SIDE)))
    policy = force_shares(both, images[:1000], SHARES)
    measured: Tree = {"samples": count}
    with torch.no_grad():
        for k, (name, member) in enumerate(members.items()):
            pairs = [(both(part)[k].logits, member(part)[0].logits) for part in images.split(250)]
            measured[f"logits of {name}"] = sum(int((a != b).any(1).sum()) for a, b in pairs)
    preds = [xl.predict(both, part, policy) for part in images.split(250)]
    expected = {name: torch.cat([getattr(pred, name) for pred in preds]).numpy() for name in ("labels", "exits")}
    runtime, parts = exitlens_runtime.load(xl.export(both, policy, folder / "edge", overwrite=True)), images.numpy()
    answers = [runtime.predict(part) for part in cut(parts, 64)]
    given = {name: np.concatenate([getattr(part, name) for part in answers]) for name in expected}
    measured["runtime"] = int((np.stack([*given.values()]) != np.stack([*expected.values()])).any(0).sum())
    names, requests = ("label", "exit"), [make_infer_request(part, ("label", "exit")) for part in cut(parts, 4)]
    bundle = xl.save(both, policy, folder / "bundle", overwrite=True)
    with start_ours(bundle, parts[0], batching=serving.PATIENT) as server:
        every = np.arange(len(requests))
        trial = run_load(Spec(server.port, requests, every / 100, every, connections=8, grace=60.0, keep=True))
    read = [serving.read_outputs(part) for part in trial.answers]
    served = np.stack([np.concatenate([part[1][name] for part in read if part]) for name in names])
    measured["server"] = int((served != np.stack([*expected.values()])).any(0).sum())
    return measured


def cut(images: Array, size: int) -> list[Array]:
    return [images[at : at + size] for at in range(0, len(images), size)]


def list_promises(runs: Runs) -> Iterator[Promise]:
    for name, measured in runs.items():
        if name == "answers":
            for part, others in ((part, count) for part, count in measured.items() if part != "samples"):
                what = f"{part}: others than the members' or the library's, of {measured['samples']:,}"
                yield Promise(f"cascades|{part}", what, others, "<=", 0, exact=True)
        else:
            what = f"{name.removeprefix('speed-')}: time that its members need over the cascade's, 80 / 20"
            yield Promise.of_median(f"cascades|{name}", what, measured["efficiency"], ">=", EFFICIENCY)


def write_tables(runs: Runs) -> list[str]:
    rows = []
    for name, run in runs.items():
        if name.startswith("speed-"):
            _, engine, batch = name.split("-")
            ms = [f"{run['ms'][part]:.2f}" for part in ("small", "large", "both")]
            rows.append(
                [ENGINE_NAMES[engine], batch, *ms, show_interval(run["efficiency"]), show_interval(run["over_large"])]
            )
    head = ["engine", "batch", "small, ms", "large, ms", "cascade, ms", "of the ideal", "times as fast as the large one"]
    note = (
        f"MobileNet-V3-small before ResNet-18, {PIXELS} pixels, one thread, milliseconds an image; {100 * SHARES[0]:.0f} % of the images leave "
        "at the small one. Ideal: the small one's time, and a fifth of the large one's, each alone. Batches of 32 come as a stream."
    )
    return [note, "", *table(head, rows), "", *promise_table(list_promises(runs))]


STUDY = Study("cascades", list_cells, list_promises, {"cascades": write_tables}, alone="speed-")
