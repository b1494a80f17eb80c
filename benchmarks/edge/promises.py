"""What exported networks promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.promises import Promise
from benchmarks.study.report.figures import interval

OVER_TORCH = {"demo": 2.0, "resnet18": 1.6, "resnet50": 1.3, "deit_tiny": 1.1}  # one image
OVER_PLAIN = {"demo": 2.5, "resnet50": 2.2}


def list_promises(run: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    """Those of one run."""
    kind, _, name = run.partition("-")
    yield from {
        "decisions": _of_decisions,
        "speed": _of_speed,
        "points": _of_points,
        "int8": _of_int8,
        "install": _of_install,
        "browser": _of_browser,
    }[kind](name, found)


def _of_decisions(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    for name, sizes in found.items():
        if not isinstance(sizes, dict):
            continue
        for size, one in sizes.items():
            at = f"{name}, batch {size}, {found['samples']} images"
            key = f"{name}|{size}"
            yield Promise(
                f"edge|others|{key}", f"{at}: other decisions, no score near its threshold", one["others"], "<=", 0
            )
            near = one["others_near"]
            yield Promise(f"edge|near|{key}", f"{at}: other decisions within 1e-5 of a threshold", near, "<=", 2)
            yield Promise(f"edge|map|{key}", f"{at}: furthest attention map", one["map_gap"], "<=", 1e-4)


def _of_speed(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    for size, one in found.items():
        at, key = f"{name}, batch {size}", f"{name}|{size}"
        bar = OVER_TORCH[name] if size == "1" else 1.0
        yield Promise(f"edge|torch|{key}", f"{at}: runtime, times the tuned engine", one["torch_over_runtime"][0], ">=", bar)
        if name in OVER_PLAIN and size in ("1", "32"):
            what, ratio = f"{at}: runtime, times the plain backbone in ONNX Runtime", one["plain_over_runtime"][0]
            yield Promise(f"edge|plain|{key}", what, ratio, ">=", OVER_PLAIN[name])
            what = f"{at}: ideal time by stage times, over the runtime's"
            yield Promise(f"edge|ideal|{key}", what, one["efficiency"][0], ">=", 0.95)
        if size in ("1", "32"):
            what = f"{at}: cascade, times the runtime"
            yield Promise(f"edge|cascade|{key}", what, one["runtime_over_cascade"][0], ">=", 0.9)
        if "earlyon_over_runtime" in one:
            yield Promise(f"edge|earlyon|{key}", f"{at}: times earlyon", one["earlyon_over_runtime"][0], ">=", 1.5)
        if (name, size) == ("resnet50", "1"):
            what = f"{at}: cascade, all at exit 0: saving over the ideal one"
            yield Promise(f"edge|saving|{key}", what, one["saving"][0], ">=", 0.85)


def _of_points(task: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    ratio, half = interval([one["plain_over_runtime"][0] for one in found.values()])
    what = f"{task}: times the plain backbone, ONNX Runtime on both sides, batch 64"
    yield Promise(f"edge|points|{task}", what, ratio, ">=", 3.5, half)
    lost, half = interval([one["points_lost"] for one in found.values()])
    yield Promise(f"edge|lost|{task}", f"{task}: points lost at that speed", lost, "<=", 0.3, half)


def _of_int8(name: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    if found["int8_instructions"] != "none":
        for size in ("1", "32"):
            what = f"{name}: int8, times float32 in ONNX Runtime, one core, batch {size}"
            yield Promise(f"edge|int8|{name}|{size}", what, found[size][0], ">=", 1.3)
    least = min(found["agreement"])
    yield Promise(f"edge|labels|{name}", f"{name}: int8, labels as in float32, at the exit with fewest", least, ">=", 0.99)


def _of_install(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    bars = {"import_seconds": 0.3, "first_answer_seconds": 0.6, "memory_megabytes": 150.0}
    yield Promise("edge|size", "exitlens-runtime, installed with what it needs, megabytes", found["megabytes"], "<=", 170.0)
    for key, bar in bars.items():
        yield Promise(f"edge|{key}", f"exitlens-runtime: {key.replace('_', ' ')}", found[key][0], "<=", bar)


def _of_browser(_: str, found: Mapping[str, Any]) -> Iterator[Promise]:
    seconds = found["first_answer_seconds"][0]
    yield Promise("edge|browser", "page in Chromium: seconds to the first answer", seconds, "<=", 1.0)
