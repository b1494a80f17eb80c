"""Tables of the runs that are not compared over conditions: sweeps, trials, and what was timed."""

from __future__ import annotations

import json

from benchmarks.markdown import table
from benchmarks.store import RESULTS, Store
from benchmarks.study.conditions import SWEPT, choose_weight, find_sweep
from benchmarks.study.report.figures import load_rows
from benchmarks.study.trials import TRIALS

ENDS = (0, -1)  # exit 0 and the final one


def sweep_table(store: Store) -> list[str]:
    lines = []
    for name in SWEPT:
        for found in find_sweep(store, name):
            near, far = found["agreeing"], found["disagreeing"]
            is_best = name != "none" and found["alpha"] == choose_weight(store, name, ())  # of those that are there
            mark = " (best)" if is_best else ""
            row = [f"{100 * near['accuracy'][k]:.1f} / {100 * far['accuracy'][k]:.1f}" for k in ENDS]
            lines.append([name, f"{found['alpha']:g}{mark}", *row, " / ".join(f"{s:.2f}" for s in near["skill"])])
    return table(["loss", "weight", "exit 0, agreeing / disagreeing, %", "final, %", "skill at exits 0 / 1 / 2"], lines)


def speed_table(store: Store) -> list[str]:
    lines = []
    for data, runs in load_rows(store, "speed").items():
        for seed, found in runs.items():
            for policy, row in found["rows"].items():
                speed = row["speed"]
                times = f"{speed['speedup']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
                lost = f"{100 * row['accuracy_drop']:.2f}"
                lines.append([f"{data}-{seed}", policy, times, f"{row['cost']:.3f}", lost])
    return table(["run", "policy", "times faster than (a), batch 64 (quartiles)", "cost", "points lost to (a)"], lines)


def trials_table() -> list[str]:
    """The trial runs that the defaults were chosen from."""
    head = ["trial", "cost of exit 0", "exit 0 / final, agreeing, %", "disagreeing, %", "skill 0 / 1 / 2", "KL, mean"]
    head += ["deletion over random, exit 0 / final", "energy in the object, final"]
    lines = []
    for row in json.loads((RESULTS / "trials.json").read_text())["trials"]:
        ends = [f"{row[test][0]:.1f} / {row[test][-1]:.1f}" for test in ("agreeing", "disagreeing")]
        if "skill" not in row:
            lines.append([row["title"], "", *[f"{row[test][-1]:.1f}" for test in ("agreeing", "disagreeing")], *[""] * 4])
            continue
        skill = " / ".join(f"{s:.2f}" for s in row["skill"])
        deletion = f"{row['deletion'][0]:.2f} / {row['deletion'][-1]:.2f}"
        kl, energy = sum(row["kl"]) / len(row["kl"]), row["energy"][-1]
        lines.append([row["title"], f"{row['cost'][0]:.3f}", *ends, skill, f"{kl:.3f}", deletion, f"{energy:.2f}"])
    return table(head, lines)


def later_trials_table(store: Store) -> list[str]:
    """The trials of benchmarks.study.trials, which keep more."""
    head = ["trial", "exit 0 / final, agreeing, %", "disagreeing, %"]
    head += ["final, if it answers with all exits' average: agreeing / disagreeing, %", "skill 0 / 1 / 2", "KL, mean"]
    head += ["deletion over random, exit 0 / final", "energy in the object, exit 0 / final"]
    lines = []
    for name in TRIALS:
        if f"trials/{name}" in store:
            found = store.find(f"trials/{name}")
            tests, maps = [found[test] for test in ("agreeing", "disagreeing")], found["faithfulness"]
            ends = [" / ".join(f"{100 * test['accuracy'][k]:.1f}" for k in ENDS) for test in tests]
            averaged = " / ".join(f"{100 * test['averaged'][-1]:.1f}" for test in tests)
            skill = " / ".join(f"{s:.2f}" for s in tests[0]["skill"])
            deletion = " / ".join(f"{maps['deletion'][k] - maps['deletion_random'][k]:.2f}" for k in ENDS)
            energy = " / ".join(f"{maps['energy_in_mask'][k]:.2f}" for k in ENDS)
            kl = sum(tests[0]["kl"]) / len(tests[0]["kl"])
            lines.append([found["title"], *ends, averaged, skill, f"{kl:.3f}", deletion, energy])
    return table(head, lines)
