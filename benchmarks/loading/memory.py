"""Memory of a process and of all processes that it started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MB = 1e6


def watch(command: list[str]) -> tuple[dict[str, Any], float]:
    """Runs a command that prints JSON; the JSON, and the peak of resident memory (MB), that of its children counted in full."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(_read_resident, _list_family(process.pid))))
        time.sleep(0.05)
    assert process.stdout is not None
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return json.loads(process.stdout.read()), peak


def run_work(verb: str, folder: Path) -> tuple[dict[str, Any], float]:
    return watch([sys.executable, "-m", "benchmarks.loading.work", verb, str(folder)])


def _list_family(pid: int) -> list[int]:
    """The process and its descendants."""
    family = [pid]
    for one in family:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                family += map(int, task.read_text().split())
            except OSError:
                continue
    return family


def _read_resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmRSS")), 0.0)
