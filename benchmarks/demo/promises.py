"""Prints every promise about the demo beside what runs/demo/result.json measured; exit code 1 if one is missed.

Usage: python -m benchmarks.demo.promises [runs/demo/result.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def bars(result: dict[str, Any]) -> list[tuple[str, float, str, float]]:
    """Rows of (what, measured, comparison, bar)."""
    egt, base, plain = result["egt"], result["baseline"], result["plain"]["agreeing"]["accuracy"][0]
    near, far = egt["agreeing"], egt["disagreeing"]
    near0, far0 = base["agreeing"], base["disagreeing"]
    rows = [
        ("seconds", result["seconds"], "<=", 600),
        ("attention skill, exit 0, with EGT", near["skill"][0], ">=", 0.6),
        ("accuracy gain, exit 0, agreeing (points)", 100 * (near["accuracy"][0] - near0["accuracy"][0]), ">=", 2),
        ("accuracy gain, exit 0, disagreeing (points)", 100 * (far["accuracy"][0] - far0["accuracy"][0]), ">=", 8),
        ("final exit against no EGT (points)", 100 * (near["accuracy"][-1] - near0["accuracy"][-1]), ">=", -0.7),
        ("final exit against the plain backbone (points)", 100 * (near["accuracy"][-1] - plain), ">=", -1),
        ("final exit's deletion drop, ratio to no EGT", near["deletion"][-1] / near0["deletion"][-1], ">=", 0.85),
        ("time of a training step, ratio to no EGT", result["step_time_ratio"], "<=", 1.05),
        ("time of prediction with maps, ratio to without", result["attention_time_ratio"], "<=", 1.02),
    ]
    for k, (a, b) in enumerate(zip(near["deletion"][:-1], near0["deletion"][:-1], strict=True)):
        rows.append((f"deletion drop of exit {k}, gain over no EGT", a - b, ">=", 0))
    for name in ("batch_1", "batch_64"):
        rows.append((f"times faster, {name}", result["speed"][name]["speedup"], ">=", 2))
        rows.append((f"points lost to the plain backbone, {name}", 100 * result["speed"][name]["accuracy_drop"], "<=", 1))
    return rows


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/result.json")
    missed = 0
    for what, measured, comparison, bar in bars(json.loads(path.read_text())):
        kept = measured >= bar if comparison == ">=" else measured <= bar
        missed += not kept
        print(f"{'ok    ' if kept else 'MISSED'} {what:52} {measured:8.3f} {comparison} {bar}")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
