"""What `make demo-full` promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.promises import Promise


def list_promises(result: dict[str, Any]) -> Iterator[Promise]:
    """Of runs/demo-full/result.json."""
    yield Promise("demo|seconds", "seconds", result["seconds"], "<=", 600)
    yield from _of_training(result)
    key, what = "demo|attention time", "time of prediction with maps, ratio to without"
    yield Promise(key, what, result["attention_time_ratio"], "<=", 1.02)
    for name in ("batch_1", "batch_64"):
        speed = result["speed"][name]
        yield Promise(f"demo|speed|{name}", f"times faster, {name}", speed["speedup"], ">=", 2)
        what = f"points lost to the plain backbone, {name}"
        yield Promise(f"demo|lost|{name}", what, 100 * speed["accuracy_drop"], "<=", 1)


def _of_training(result: dict[str, Any]) -> Iterator[Promise]:
    """What EGT changes in the networks."""
    egt, base, plain = result["egt"], result["baseline"], result["plain"]["agreeing"]["accuracy"][0]
    near, near0 = egt["agreeing"], base["agreeing"]
    yield Promise("demo|skill", "attention skill, exit 0, with EGT", near["skill"][0], ">=", 0.85)
    for test in ("agreeing", "disagreeing"):
        gain = 100 * (egt[test]["accuracy"][0] - base[test]["accuracy"][0])
        yield Promise(f"demo|exit 0|{test}", f"exit 0 against no EGT, {test} (points)", gain, ">=", 0)
    final = near["accuracy"][-1]
    key, what = "demo|final|no EGT", "final exit against no EGT (points)"
    yield Promise(key, what, 100 * (final - near0["accuracy"][-1]), ">=", -0.7)
    key, what = "demo|final|plain", "final exit against the plain backbone (points)"
    yield Promise(key, what, 100 * (final - plain), ">=", -1)
    for k, (share, energy) in enumerate(zip(near["deletion_share"], near["energy_in_mask"], strict=True)):
        yield Promise(f"demo|share|{k}", f"share of the oracle's deletion drop, exit {k}", share, ">=", 0.9)
        what = f"share of the oracle's deletion drop, exit {k}, over no EGT's"
        yield Promise(f"demo|gain|{k}", what, share - near0["deletion_share"][k], ">=", 0)
        yield Promise(f"demo|energy|{k}", f"attention on the object, exit {k}", energy, ">=", 0.75)
    yield Promise("demo|step", "time of a training step, ratio to no EGT", result["step_time_ratio"], "<=", 1.35)
