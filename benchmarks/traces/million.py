"""Time and memory of what is done with a trace of a million samples, four exits and a thousand classes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.traces.populations import make_million
from benchmarks.traces.runs import TRACES

LIMITS = {"max_accuracy_drop": 0.01, "max_disagreement": 0.2, "max_divergence": 0.2}


def measure_million(quick: bool) -> dict[str, Any]:
    """Every step in a process of its own, on one core."""
    path, count = TRACES.runs / "million.safetensors", 20_000 if quick else 1_000_000
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run("make", path, count)
        found = {step: _run(step, path, count) for step in ("calibrate", "certify", "evaluate")}
        return {
            "samples": count,
            "trace_mb": round(path.stat().st_size / 1e6),
            "full_mb": round(count * 16e3 / 1e6),
            **found,
        }
    finally:
        path.unlink(missing_ok=True)


def _run(step: str, path: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.traces.million", step, str(path), str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _take_step(step: str, path: Path, count: int) -> dict[str, Any]:
    if step == "make":
        make_million(min(count, 10_000), count).save(path)
        return {}
    trace = xl.Trace.load(path)
    fitted = (0.9, 0.9, 0.9, 0.9)
    works: dict[str, Callable[[], Any]] = {
        "calibrate": lambda: xl.calibrate(trace, **LIMITS),
        "certify": lambda: xl.calibrate(trace, **LIMITS, delta=0.1),
        "evaluate": lambda: xl.evaluate(trace, xl.Policy((0.9, 0.9, 0.8), temperatures=fitted)),
    }
    started, used = time.perf_counter(), time.process_time()
    found = works[step]()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    cost = found.calibration.cost if isinstance(found, xl.Policy) and found.calibration else found.cost
    peak = read_peak_memory()
    return {"seconds": round(seconds, 1), "cpu_seconds": round(used, 1), "peak_mb": round(peak), "cost": cost}


def read_peak_memory() -> float:
    """Megabytes that this process held at most, mapped files included (getrusage counts what the parent held, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_take_step(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
