"""Writes the README's results from a finished demo, keeps its JSON under benchmarks/results and its gallery under docs.

Usage: python -m benchmarks.demo.page [runs/demo]
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table(result: dict) -> str:
    egt, base = result["egt"], result["baseline"]
    exits = len(egt["agreeing"]["accuracy"])
    names = [f"exit {k}" for k in range(exits - 1)] + ["final"]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * exits]

    def row(title: str, without: list, with_: list, digits: int, scale: float = 1.0) -> None:
        cells = [f"{scale * a:.{digits}f} → **{scale * b:.{digits}f}**" for a, b in zip(without, with_, strict=True)]
        lines.append(f"| {title} | " + " | ".join([*cells, *[""] * (exits - len(cells))]) + " |")

    near, far, near0, far0 = egt["agreeing"], egt["disagreeing"], base["agreeing"], base["disagreeing"]
    row("accuracy, background agrees (%)", near0["accuracy"], near["accuracy"], 1, 100)
    row("accuracy, background says nothing (%)", far0["accuracy"], far["accuracy"], 1, 100)
    row("attention skill over the shuffled-image null", near0["skill"], near["skill"], 2)
    row("KL(final ‖ exit), nats", near0["kl"], near["kl"], 2)
    row("attention on the garment (%)", near0["energy_in_mask"], near["energy_in_mask"], 0, 100)
    row("deletion drop", near0["deletion"], near["deletion"], 2)
    row("deletion drop, random cells", near0["deletion_random"], near["deletion_random"], 2)
    return "\n".join(lines)


def speed(result: dict) -> str:
    lines = [
        "| against the plain backbone | times faster | accuracy lost (points) | cost (MACs) |",
        "| --- | --- | --- | --- |",
    ]
    for n in (1, 64):
        one = result["speed"][f"batch_{n}"]
        for title, s in ((f"batch {n}", one), (f"batch {n}, stricter policy", one["at_half_point"])):
            quartiles = f"{s['low']:.2f} to {s['high']:.2f}"
            lost, cost = 100 * s["accuracy_drop"], 100 * s["cost"]
            lines.append(f"| {title} | **{s['speedup']:.2f}** ({quartiles}) | {lost:.2f} | {cost:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    result = json.loads((run / "result.json").read_text())
    plain = 100 * result["plain"]["agreeing"]["accuracy"][0]
    text = (
        "One run of `make demo` (seed {seed}, {seconds:.0f} s on 2 cores): garments on coloured backgrounds whose colour "
        "names the class in 80 % of the training scenes; 3,000 test scenes. Without → **with EGT**:\n\n{table}\n\nThe plain "
        "backbone, trained in the same way without exits, has {plain:.1f} %. Adaptive inference with EGT, on the clock, "
        "medians (quartiles), thresholds certified on 2,000 other scenes to lose at most one point (stricter: half a point) with 90 % confidence against the "
        "final exit:\n\n{speed}\n\nA training step with EGT takes {step:.3f} times the step without; prediction with attention maps "
        "{maps:.3f} times prediction without. All numbers: `benchmarks/results/demo.json`; every promise beside its "
        "measurement: `python -m benchmarks.demo.promises`. Accuracies of one seed carry about ±0.6 points of sampling error."
    ).format(
        seed=result["seed"],
        seconds=result["seconds"],
        table=table(result),
        plain=plain,
        speed=speed(result),
        step=result["step_time_ratio"],
        maps=result["attention_time_ratio"],
    )
    readme = ROOT / "README.md"
    pattern = r"(<!-- results:.*?-->\n).*?(<!-- end of results -->)"
    readme.write_text(re.sub(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", readme.read_text(), flags=re.S))
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    shutil.copy(run / "result.json", ROOT / "benchmarks" / "results" / "demo.json")
    shutil.copy(run / "gallery.png", ROOT / "docs" / "gallery.png")


if __name__ == "__main__":
    main()
