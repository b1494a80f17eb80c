"""Memory and time of collect on few and on many samples of a thousand classes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.traces.million import read_peak_memory

PIXELS, BATCH = 32, 128


def measure_collecting(quick: bool) -> dict[str, Any]:
    """``collect`` on a small network, images made batch by batch, each number of samples in a process of its own."""
    counts = (256, 1024) if quick else (2_000, 20_000)
    return {str(count): _run(count) for count in counts}


def _run(count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.traces.collecting", str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _collect(count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = xl.attach(xl.build_backbone("small", 1000, 3), 3, 1000, torch.zeros(1, 3, PIXELS, PIXELS))

    def make_batches() -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1)
        for start in range(0, count, BATCH):
            rows = min(BATCH, count - start)
            yield torch.randn(rows, 3, PIXELS, PIXELS, generator=rng), torch.randint(0, 1000, (rows,), generator=rng)

    started = time.process_time()
    trace = xl.collect(net, make_batches())
    seconds = time.process_time() - started
    peak = read_peak_memory()
    kept = "compact" if isinstance(trace.logits, xl.CompactLogits) else "whole"
    return {"logits": kept, "cpu_ms_per_sample": round(1e3 * seconds / count, 3), "peak_mb": round(peak)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_collect(int(sys.argv[1]))))
