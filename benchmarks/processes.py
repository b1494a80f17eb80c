"""Compare training by two processes on this machine with one: seconds, weights, and what happens if a process is killed or hangs.

Cells: seconds-NET (an epoch of two processes of one thread against one process of two, in turn), weights (how far apart they are),
kill-RANK and hang-RANK (a process is killed, or stopped). Linux, two cores, nothing else running; about five minutes.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import nn
from torchvision.models import resnet18

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, spread
from benchmarks.results import Runs, Tree
from exitlens.io import read_tensors
from exitlens.model.backbones.small import SmallResNet

CLASSES, REPEATS, TIMEOUT_S = 10, 3, 5
SIZES = {"small": 40, "resnet18": 128, "resnet18-96": 96}  # 128 pixels are what `exitlens fit` takes
IMAGES = {"small": 640, "resnet18": 256, "resnet18-96": 256}
GRACE_S = 40  # torchrun asks a process to end, and kills it 30 seconds later


def list_cells(quick: bool = False) -> dict[str, Job]:
    few = {"images": 128} if quick else {}
    return {
        **{f"seconds-{name}": partial(measure_seconds, {"net": name, **few}, 1 if quick else REPEATS) for name in SIZES},
        "weights": partial(measure_weights, few),
        **{f"kill-{rank}": partial(measure_kill, rank, few) for rank in (0, 1)},
        **{f"hang-{rank}": partial(measure_hang, rank) for rank in (0, 1)},
    }


def start(out: Path, settings: Tree, processes: int, *, restarts: int = 0, timeout_s: int = 600) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["--max-restarts", str(restarts)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "EXITLENS_TIMEOUT_S": str(timeout_s)}
    command += ["-m", "benchmarks.processes", json.dumps({"out": str(out), **settings})]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], out: Path) -> tuple[dict[str, torch.Tensor], Tree]:
    """Wait for the end; return the weights, and what the run recorded."""
    errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(errors)
    state, record = read_tensors(out / "last.safetensors")
    return {name: value for name, value in state.items() if name.startswith("net.")}, record


def train(out: Path, settings: Tree, processes: int) -> tuple[dict[str, torch.Tensor], Tree]:
    return finish(start(out, settings, processes), out)


def measure_seconds(settings: Tree, repeats: int) -> Tree:
    """Measure the median epoch, the first left out, of two processes and of one, in turn."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            for processes in (1, 2) if i % 2 else (2, 1):
                record = train(Path(folder) / f"{i}-{processes}", settings, processes)[1]
                seconds[processes].append(statistics.median(row["seconds"] for row in record["history"][1:]))
    ratios = [pair / single for single, pair in zip(seconds[1], seconds[2], strict=True)]
    return {"ratio": spread(ratios)}


def measure_weights(few: Tree) -> Tree:
    """Measure how far weights are apart after an epoch, two processes against one, and from run to run of two.

    In double precision the largest difference; in single precision the share of weights within 1e-5: AdamW divides every
    gradient by its own size, so where a gradient is all but 0 its rounding moves a weight by as much as the learning rate.
    """
    single, double = ({"batch_norm": False, "epochs": 1, "double": precise, **few} for precise in (False, True))
    with tempfile.TemporaryDirectory() as folder:
        runs = [(1, double), (2, double), (1, single), (2, single), (2, single)]
        states = [train(Path(folder) / str(i), run, n)[0] for i, (n, run) in enumerate(runs)]
    weights = [torch.cat([value.flatten().double() for value in state.values()]) for state in states]
    double_single, double_pair, alone, pair, again = weights
    return {
        "double": (double_single - double_pair).abs().max().item(),
        "single": {"close": ((alone - pair).abs() <= 1e-5).double().mean().item()},
        "from_run_to_run": (pair - again).abs().max().item(),
    }


def measure_kill(rank: int, few: Tree) -> Tree:
    """Kill a rank after two of six epochs; torchrun starts both again."""
    settings = {"epochs": 6, **few}
    with tempfile.TemporaryDirectory() as folder:
        whole, out = train(Path(folder) / "whole", settings, 2)[0], Path(folder) / "killed"
        process = start(out, settings, 2, restarts=1)
        send_signal(process, out, rank, signal.SIGKILL)
        weights = finish(process, out)[0]
    return {"same": float(all(torch.equal(weights[name], value) for name, value in whole.items()))}


def measure_hang(rank: int) -> Tree:
    """Stop a rank; the other gives up when its time is over, and torchrun ends both."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(Path(folder), {"epochs": 50}, 2, timeout_s=TIMEOUT_S)
        send_signal(process, Path(folder), rank, signal.SIGSTOP)
        started = time.monotonic()
        errors = process.communicate()[1]
        seconds = time.monotonic() - started
    return {"seconds": seconds, "timeout": TIMEOUT_S, "said": float("lost the others" in errors)}


def send_signal(process: subprocess.Popen[str], out: Path, rank: int, number: signal.Signals) -> None:
    log = out / "log.csv"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[1])
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            child.send_signal(number)
            return
    raise RuntimeError(f"rank {rank} was not found")


def replace_batch_norm(module: nn.Module) -> None:
    """Put group norm in place of batch norm: then results do not depend on how a batch is split."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        replace_batch_norm(child)


def make_set(count: int, size: int) -> xl.data.ImageSet:
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randint(0, 120, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    width = size // CLASSES
    for i, label in enumerate(labels.tolist()):
        pixels[i, label % 3, :, label * width : (label + 1) * width] += 100
    return xl.data.ImageSet(pixels, labels, tuple(map(str, range(CLASSES))))


def main() -> None:
    """Train as the words in JSON say."""
    given = {"net": "small", "epochs": 3, "images": 0, "batch_norm": True, "double": False} | json.loads(sys.argv[1])
    size, dtype = SIZES[given["net"]], torch.float64 if given["double"] else torch.float32
    torch.manual_seed(0)
    backbone = SmallResNet(CLASSES) if given["net"] == "small" else resnet18(num_classes=CLASSES)
    if not given["batch_norm"]:
        replace_batch_norm(backbone)
    head = "context" if given["batch_norm"] else "evidence"  # the neck of context heads has batch norm
    net = xl.attach(backbone, ["layer1", "layer2", "layer3"], CLASSES, torch.zeros(1, 3, size, size), head=head)
    data = make_set(given["images"] or IMAGES[given["net"]], size)
    images = data.first(64).inputs.to(dtype)
    val = [(images[:32], data.labels[:32]), (images[32:], data.labels[32:64])]  # a whole batch for each process
    settings = {"epochs": given["epochs"], "out_dir": given["out"], "batch_size": 64, "amp": False, "progress": False}
    xl.fit(net.to(dtype), data, val, augment=lambda images: images.to(dtype), **settings)


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run, measured in runs.items():
        kind, _, name = run.partition("-")
        if kind == "seconds":
            what = f"an epoch of two processes of one thread, ratio to one of two, {name}"
            yield Promise.of_median(f"processes|{run}", what, measured["ratio"], "<=", 1.1)
        elif kind == "weights":
            what = "largest difference of a weight after an epoch in double precision, two processes and one"
            yield Promise("processes|weights", what, measured["double"], "<=", 1e-5, exact=True)
            what = "the same between two runs of two processes"
            yield Promise("processes|run to run", what, measured["from_run_to_run"], "<=", 0, exact=True)
        elif kind == "kill":
            what = f"rank {name} killed: torchrun goes on and ends with the same weights (1: yes)"
            yield Promise(f"processes|{run}", what, measured["same"], ">=", 1, exact=True)
        elif kind == "hang":
            what = f"rank {name} stopped: seconds until all have ended, beyond the time-out"
            yield Promise(f"processes|{run}", what, measured["seconds"] - measured["timeout"], "<=", GRACE_S)
            what = f"rank {name} stopped: the other reports it (1: yes)"
            yield Promise(f"processes|{run}|said", what, measured["said"], ">=", 1, exact=True)


STUDY = Study("processes", list_cells, list_promises)

if __name__ == "__main__":
    main()
