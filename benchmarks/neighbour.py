"""Training beside another busy process, against training alone: ``xl.fit`` that shares the cores, that does not, and plain PyTorch.

Nothing else running; three minutes a cell. The neighbour is a training with a thread for every core, or one busy loop.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.harness import Job, Promise, Study, show_interval, spread, table
from benchmarks.results import Runs, Tree
from exitlens.launch import WAITING, let_threads_sleep

KINDS = {"shared": "`fit`", "unshared": "`fit(share_cores=False)`", "plain": "plain PyTorch, no exits"}
NEIGHBOURS = {"training": "import torch\nx = torch.randn(600, 600)\nwhile True: x @ x", "loop": "while True: pass"}
SAMPLES, BATCH, CLASSES = 1024, 64, 10


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {kind: partial(measure, kind, 1 if quick else 3) for kind in KINDS}


def measure(kind: str, rounds: int) -> Tree:
    """Measure seconds an epoch, alone and beside each neighbour in turn: the median of the rounds, and both ends."""
    ours = (*WAITING, "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", *NEIGHBOURS)}
    for _ in range(rounds):
        for name, values in seconds.items():
            with run_neighbour(name, clean):
                command = [sys.executable, "-m", "benchmarks.neighbour", kind]
                out = subprocess.run(command, env=clean, stdout=subprocess.PIPE, text=True, check=True).stdout
            values.append(statistics.median(json.loads(out.splitlines()[-1])[1:]))  # the first epoch warms up
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds["alone"], strict=True)] for name in NEIGHBOURS}
    return {"seconds": spread(seconds["alone"]), "ratio": {name: spread(values) for name, values in ratios.items()}}


@contextmanager
def run_neighbour(name: str, environment: dict[str, str]) -> Iterator[None]:
    if name == "alone":
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOURS[name]], env=environment)
    try:
        time.sleep(3)
        yield
    finally:
        process.kill()
        process.wait()


def train(kind: str) -> list[float]:
    """Train for a few epochs, and return the seconds of each."""
    if kind != "plain":
        let_threads_sleep()  # as the command line does; before PyTorch is imported
    import torch

    import exitlens as xl
    from exitlens.model.backbones.small import SmallResNet

    images, labels = torch.randint(0, 256, (SAMPLES, 3, 48, 48), dtype=torch.uint8), torch.arange(SAMPLES) % CLASSES
    if kind != "plain":
        data = xl.data.ImageSet(images, labels, tuple("abcdefghij"))
        net = xl.attach(SmallResNet(), ["layer1", "layer2", "layer3"], CLASSES, data.first(1).inputs)
        result = xl.fit(net, data, data.first(64), epochs=3, batch_size=BATCH, progress=False, share_cores=kind == "shared")
        return [row["seconds"] for row in result.history]
    backbone = SmallResNet(CLASSES).to(memory_format=torch.channels_last)
    optimizer, seconds = torch.optim.AdamW(backbone.parameters()), []
    for _ in range(3):
        started = time.perf_counter()
        for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                logits = backbone(batch.div(255).contiguous(memory_format=torch.channels_last))
                loss = torch.nn.functional.cross_entropy(logits, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def list_promises(runs: Runs) -> Iterator[Promise]:
    for name, ratio in runs.get("shared", {}).get("ratio", {}).items():
        what = f"training beside a busy neighbour ({name}), times as long as alone"
        yield Promise.of_median(f"neighbour|{name}", what, ratio, "<=", 2.5)


def write_table(runs: Runs) -> list[str]:
    head = ["", "seconds an epoch alone", "beside a training, times as long", "beside a busy loop"]
    rows = {kind: (run["seconds"], *(run["ratio"][name] for name in NEIGHBOURS)) for kind, run in runs.items()}
    return table(head, ([KINDS[kind], *map(show_interval, row)] for kind, row in rows.items()))


STUDY = Study("neighbour", list_cells, list_promises, {"neighbour": write_table})

if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1])))
