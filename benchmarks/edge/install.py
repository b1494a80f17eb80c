"""What exitlens-runtime takes on a device: pip install in a fresh environment, import, first answer, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import exitlens as xl
from benchmarks.edge.networks import BUNDLE
from benchmarks.markdown import ROOT
from benchmarks.performance.networks import make_scenes

ROUNDS = 7
PROBE = """
import re, sys, time
started = time.perf_counter()
import exitlens_runtime
imported = time.perf_counter()
import numpy
net = exitlens_runtime.load(sys.argv[1])
net.predict(numpy.load(sys.argv[2])[:1])
answered = time.perf_counter()
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # maxrss would count the process that started this
print(imported - started, answered - started, int(peak) / 1024)
"""


def measure_install() -> dict[str, Any]:
    """Megabytes of the environment; seconds to import, and to the first answer in a fresh process, that included; memory."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net, policy = xl.load(BUNDLE)
        assert policy is not None
        edge = xl.export(net, policy, folder / "edge")
        np.save(folder / "images.npy", make_scenes(net, 4).numpy())
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "v")], check=True)
        python = str(folder / "v" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", str(ROOT / "runtime")], check=True)
        files = [path for path in (folder / "v" / "lib").rglob("*") if path.is_file() and not path.is_symlink()]
        found: dict[str, Any] = {"megabytes": sum(path.stat().st_size for path in files) / 1e6}
        rows = []
        for _ in range(ROUNDS):
            done = subprocess.run(
                [python, "-c", PROBE, str(edge), str(folder / "images.npy")], capture_output=True, text=True, check=True
            )
            rows.append([float(word) for word in done.stdout.split()])
    for key, values in zip(
        ("import_seconds", "first_answer_seconds", "memory_megabytes"), zip(*rows, strict=True), strict=True
    ):
        found[key] = [statistics.median(values), min(values), max(values)]
    return found
