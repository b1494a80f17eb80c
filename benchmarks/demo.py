"""What a finished run of `make demo-full` (runs/demo-full) promises, and the tables about it on the start pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Job, Promise, Study, table
from benchmarks.results import Runs, Tree

RUN = Path("runs/demo-full")
ROWS = (  # title, test set, measure, digits, scale
    ("accuracy, background agrees (%)", "agreeing", "accuracy", 1, 100),
    ("accuracy, background says nothing (%)", "disagreeing", "accuracy", 1, 100),
    ("binding at 20 %", "agreeing", "binding", 2, 1),
    ("binding at 20 %, another scene's map", "agreeing", "binding_another", 2, 1),
    ("changed with the background", "agreeing", "cue_swap", 2, 1),
    ("attention skill over the shuffled-image null", "agreeing", "skill", 2, 1),
    ("KL(final ‖ exit), nats", "agreeing", "kl", 2, 1),
    ("attention on the garment (%)", "agreeing", "energy_in_mask", 0, 100),
    ("deletion drop", "agreeing", "deletion", 2, 1),
    ("deletion drop, random cells", "agreeing", "deletion_random", 2, 1),
)
SUMMARY = (
    ("accuracy (%)", "agreeing", "accuracy", 1, 100),
    ("attention on the garment (%)", "agreeing", "energy_in_mask", 0, 100),
    ("agreement with the final exit's attention (0: chance, 1: same)", "agreeing", "skill", 2, 1),
    ("deletion by the attention (0: chance, 1: as good as trying every cell)", "agreeing", "deletion_share", 2, 1),
)


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {"demo": keep_result}


def keep_result() -> Tree:
    shutil.copy(RUN / "gallery.png", ROOT / "docs" / "measured" / "gallery.png")
    result: Tree = json.loads((RUN / "result.json").read_text())
    result.pop("policy")  # large: it contains the samples that chose it, and the bundle has it
    return drop_curves(result)


def drop_curves(tree: Tree) -> Tree:
    """Leave out lists of lists: curves that no table shows."""
    return {
        name: drop_curves(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if not (isinstance(value, list) and value and isinstance(value[0], list))
    }


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Promise what one run measures: it has no interval, so all of it is undecided."""
    for result in runs.values():
        (near, near0), plain = (result[run]["agreeing"] for run in ("egt", "baseline")), result["plain"]["agreeing"]
        yield Promise("demo|seconds", "demo: seconds", result["seconds"], "<=", 600)
        yield Promise("demo|skill", "attention skill, exit 0, with EGT", near["skill"][0], ">=", 0.85)
        for test in ("agreeing", "disagreeing"):
            gain = 100 * (result["egt"][test]["accuracy"][0] - result["baseline"][test]["accuracy"][0])
            yield Promise(f"demo|exit 0|{test}", f"exit 0 against no EGT, {test} (points)", gain, ">=", 0)
        for words, other, bar in (("no EGT", near0, -0.7), ("the plain backbone", plain, -1)):
            points = 100 * (near["accuracy"][-1] - other["accuracy"][-1])
            yield Promise(f"demo|final|{words}", f"final exit against {words} (points)", points, ">=", bar)
        for k, (share, energy) in enumerate(zip(near["deletion_share"], near["energy_in_mask"], strict=True)):
            what = f"share of the oracle's deletion drop, exit {k}"
            yield Promise(f"demo|share|{k}", what, share, ">=", 0.9)
            yield Promise(f"demo|gain|{k}", f"{what}, over no EGT's", share - near0["deletion_share"][k], ">=", 0)
            yield Promise(f"demo|energy|{k}", f"attention on the object, exit {k}", energy, ">=", 0.75)
        for key, what, bar in (("step", "a training step with EGT", 1.35), ("attention", "prediction with maps", 1.02)):
            yield Promise(f"demo|{key} time", f"demo: time of {what} over without", result[f"{key}_time_ratio"], "<=", bar)
        for size in (1, 64):
            speed, lost = result["speed"][f"batch_{size}"], f"points lost to the plain backbone, batch {size}"
            yield Promise(f"demo|speed|{size}", f"times faster, batch {size}", speed["speedup"], ">=", 2)
            yield Promise(f"demo|lost|{size}", lost, 100 * speed["accuracy_drop"], "<=", 1)


def write_exits(result: Tree, chosen: Sequence[tuple[str, str, str, int, int]]) -> list[str]:
    exits = len(result["egt"]["agreeing"]["accuracy"])
    rows = []
    for title, test, measure, digits, scale in chosen:
        if measure not in result["egt"][test]:  # an earlier run
            continue
        pairs = zip(result["baseline"][test][measure], result["egt"][test][measure], strict=True)
        cells = [f"{scale * a:.{digits}f} → **{scale * b:.{digits}f}**" for a, b in pairs]
        rows.append([title, *cells, *[""] * (exits - len(cells))])
    return table(["", *(f"exit {k}" for k in range(exits - 1)), "final"], rows)


def write_speed(result: Tree) -> list[str]:
    rows = []
    for size in (1, 64):
        speed = result["speed"][f"batch_{size}"]
        for title, s in ((f"batch {size}", speed), (f"batch {size}, stricter policy", speed["at_half_point"])):
            times = f"**{s['speedup']:.2f}** ({s['low']:.2f} to {s['high']:.2f})"
            rows.append([title, times, f"{100 * s['accuracy_drop']:.2f}", f"{100 * s['cost']:.0f} %"])
    return table(["against the plain backbone", "times faster", "accuracy lost (points)", "cost (MACs)"], rows)


def write_demo(runs: Runs) -> list[str]:
    result = runs["demo"]
    plain = 100 * result["plain"]["agreeing"]["accuracy"][0]
    return [
        f"One run of `make demo-full` (seed {result['seed']}, {result['seconds']:.0f} s on 2 cores): garments on coloured backgrounds whose "
        "colour names the class in 80 % of the training scenes; 3,000 test scenes. Without → **with EGT**:",
        "",
        *write_exits(result, ROWS),
        "",
        f"The plain backbone, trained in the same way without exits, has {plain:.1f} %. Adaptive inference with EGT, on the clock, medians "
        "(quartiles), thresholds certified on 2,000 other scenes to lose at most one point (stricter: half a point) with 90 % confidence "
        "against the final exit:",
        "",
        *write_speed(result),
        "",
        f"A training step with EGT takes {result['step_time_ratio']:.3f} times the step without; prediction with attention maps "
        f"{result['attention_time_ratio']:.3f} times prediction without. All numbers: `benchmarks/results/demo.csv`; every promise beside "
        "its measurement: `python -m benchmarks demo check`. Accuracies of one seed carry about ±0.6 points of sampling error.",
    ]


def write_summary(runs: Runs) -> list[str]:
    result = runs["demo"]
    plain = 100 * result["plain"]["agreeing"]["accuracy"][0]
    before, after = (100 * result[run]["disagreeing"]["accuracy"][0] for run in ("baseline", "egt"))
    timed = result["speed"]["batch_64"]
    return [
        "`make demo-full`: garments on coloured backgrounds that give the class away in 80 % of the scenes; 3,000 test scenes. Without EGT → "
        "**with EGT**:",
        "",
        *write_exits(result, SUMMARY),
        "",
        f"The plain backbone reaches {plain:.1f} %. Where backgrounds say nothing about the class, exit 0 has {before:.1f} without and "
        f"{after:.1f} % with EGT, in one run ([more](docs/measured/truth.md)). With thresholds certified (90 % confidence) to cost at most one point, batches of 64 run "
        f"**{timed['speedup']:.1f} times faster** than the plain backbone and lose {100 * timed['accuracy_drop']:.1f} points.",
    ]


STUDY = Study("demo", list_cells, list_promises, {"demo": write_demo, "results": write_summary})
