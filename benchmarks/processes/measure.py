"""What is measured: seconds an epoch, weights, and what happens to a run of which a process is killed or stopped."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from exitlens.io import read_tensors

REPEATS = 3
TIMEOUT_S = 5


def start(words: list[str], processes: int, *, restarts: int = 0, timeout_s: int = 600) -> subprocess.Popen[str]:
    """Training by one process of two threads, or by two of one."""
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        head += ["--max-restarts", str(restarts)]
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "EXITLENS_TIMEOUT_S": str(timeout_s)}
    command = [*head, "-m", "benchmarks.processes.train", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def train(out: Path, words: list[str], processes: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and record of a run."""
    process = start(["--out", str(out), *words], processes)
    told = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(told)
    state, note = read_tensors(out / "last.safetensors")
    return {name: value for name, value in state.items() if name.startswith("net.")}, note


def measure_seconds(name: str, quick: bool) -> dict[str, Any]:
    """The median epoch, the first left out, of two processes and of one, in turn."""
    words = ["--net", name, *(["--images", "128"] if quick else [])]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1 if quick else REPEATS):
            for processes in (1, 2) if i % 2 else (2, 1):
                note = train(Path(folder) / f"{i}-{processes}", words, processes)[1]
                seconds[processes].append(statistics.median(row["seconds"] for row in note["history"][1:]))
    ratios = sorted(two / one for one, two in zip(seconds[1], seconds[2], strict=True))
    return {
        "one": statistics.median(seconds[1]),
        "two": statistics.median(seconds[2]),
        "ratio": [statistics.median(ratios), ratios[0], ratios[-1]],
    }


def measure_weights(quick: bool) -> dict[str, Any]:
    """How far weights are apart after an epoch, two processes against one, and from run to run of two.

    In double precision the largest difference; in single precision the share of weights within 1e-5: AdamW divides every
    gradient by its own size, so where a gradient is all but 0 its rounding moves a weight by as much as the learning rate.
    """
    words = ["--no-batch-norm", "--epochs", "1", *(["--images", "128"] if quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        runs = [(*words, "--double"), (*words, "--double"), words, words, words]
        states = [train(Path(folder) / str(i), list(runs[i]), n)[0] for i, n in enumerate((1, 2, 1, 2, 2))]
    one, two, single, pair, again = (torch.cat([value.flatten().double() for value in state.values()]) for state in states)
    return {
        "weights": len(one),
        "double": (one - two).abs().max().item(),
        "single": {
            "largest": (single - pair).abs().max().item(),
            "close": ((single - pair).abs() <= 1e-5).double().mean().item(),
        },
        "from_run_to_run": (pair - again).abs().max().item(),
    }


def measure_kill(rank: int, quick: bool) -> dict[str, Any]:
    """A rank is killed after two of six epochs, and torchrun starts both again."""
    words = ["--epochs", "6", *(["--images", "128"] if quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder) / "whole", words, 2)[0]
        out = Path(folder) / "killed"
        process = start(["--out", str(out), *words], 2, restarts=1)
        _signal(process, out, rank, signal.SIGKILL)
        started = time.monotonic()
        told = process.communicate()[1]
        seconds = time.monotonic() - started
        if process.returncode:
            raise RuntimeError(told)
        found, note = read_tensors(out / "last.safetensors")
    same = all(torch.equal(found[name], value) for name, value in whole.items())
    return {"same": float(same), "epochs": len(note["history"]), "seconds_to_end": seconds}


def measure_hang(rank: int, quick: bool) -> dict[str, Any]:
    """A rank is stopped; the other gives up when its time is over, and torchrun ends both."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stopped"
        process = start(["--out", str(out), "--epochs", "50"], 2, timeout_s=TIMEOUT_S)
        _signal(process, out, rank, signal.SIGSTOP)
        started = time.monotonic()
        told = process.communicate()[1]
        seconds = time.monotonic() - started
        kept = len(read_tensors(out / "last.safetensors")[1]["history"])
    return {"seconds": seconds, "timeout": TIMEOUT_S, "said": float("lost the others" in told), "epochs_kept": kept}


def _signal(process: subprocess.Popen[str], out: Path, rank: int, which: signal.Signals) -> None:
    """Sends a rank a signal once two epochs are written."""
    log = out / "log.csv"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[1])
        time.sleep(0.02)
    for line in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in map(int, line.read_text().split()):
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                os.kill(child, which)
                return
    raise RuntimeError(f"rank {rank} was not found")
