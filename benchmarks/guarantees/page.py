"""Writes the tables of docs/concepts/guarantees.md from guarantees.csv.

Usage: python -m benchmarks.guarantees.page
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.guarantees.promises import pool_worst
from benchmarks.markdown import fill, say_what_is_missing, table
from benchmarks.store import GUARANTEES

Sets = dict[str, dict[str, dict[str, float]]]
DELTAS = (0.05, 0.1, 0.2)
RISKS = ("accuracy drop", "disagreement", "divergence", "all three")
LABEL_RISKS = ("accuracy drop", "missed labels", "both")


def read_parts(prefix: str) -> dict[str, dict[str, Any]]:
    """Runs whose name begins so, by the rest of it."""
    runs = GUARANTEES.read()
    return {name.removeprefix(prefix): runs[name] for name in sorted(runs) if name.startswith(prefix)}


def find_worst(sets: Sets, label: str, delta: float) -> float:
    """The largest share of broken promises over all limits."""
    return max(row["violations"] for row in sets[label].values() if row["delta"] == delta)


def write_violations() -> list[str]:
    real, synthetic = read_parts("splits-"), GUARANTEES.read()["synthetic"]
    rows = [[f"{name}, {one['splits']:,} splits of {one['samples']:,}", *_worst(one["sets"])] for name, one in real.items()]
    title, broken = f"a third of {synthetic['draws']:,} draws", synthetic["broken"]
    rows += [[f"synthetic {k}, {title}", *_worst(synthetic["sets"], f"population {k}, ")] for k in (0, 1, 2)]
    title = f"*one step too far*, synthetic 1, a third of {broken['draws']} draws"
    return [
        "Share of calibrations after which a risk was above its limit (the worst over limits of 0.5, 1, 2 and 5 %), for δ = 0.05, 0.1, 0.2.",
        "Splits: 1,000 random draws of 2,000 calibration samples from a real trace, the risk taken on all other samples. Synthetic: 2,000 draws "
        "of 1,000 samples from three populations whose risks are known.",
        "",
        *table(["", *RISKS], [*rows, [title, *_worst(broken["sets"], "population 1, ")]]),
    ]


def write_labels() -> list[str]:
    runs = GUARANTEES.read()
    if missing := say_what_is_missing(["labels"], runs, "python -m benchmarks.guarantees --only labels"):
        return missing
    found = runs["labels"]
    sets, title = found["sets"], f"a third of {found['draws']:,} draws"
    rows = [[f"labels {k}, {title}", *_worst(sets, f"population {k}, ", LABEL_RISKS)] for k in (0, 1, 2)]
    every = [", ".join(f"{pool_worst(sets, risk, delta):.3f}" for delta in DELTAS) for risk in LABEL_RISKS]
    further = found["broken"]
    over = [f"*one step too far*, labels 1, a third of {further['draws']} draws"]
    over += _worst(further["sets"], "population 1, ", LABEL_RISKS)
    return [
        f"Share of calibrations after which a risk was above its limit (the worst over limits of 0.5, 1, 2 and 5 %), for δ = 0.05, 0.1, 0.2: "
        f"{found['draws']:,} draws of {found['samples']:,} samples from three populations whose risks are known, five labels, temperatures fitted "
        "on the part that proposes. Missed labels: `max_false_negative_drop`.",
        "",
        *table(["", *LABEL_RISKS], [*rows, [f"all {found['draws']:,} draws", *every], over]),
    ]


def _worst(sets: Sets, prefix: str = "", risks: Sequence[str] = RISKS) -> list[str]:
    return [", ".join(f"{find_worst(sets, prefix + risk, delta):.3f}" for delta in DELTAS) for risk in risks]


def write_savings() -> list[str]:
    found = read_parts("saving-")
    rows = [
        [
            label,
            *(
                f"{one['costs'][label]:.3f} ({100 * one['share_of_hindsight'][label]:.0f} %), above in {100 * one['broken'][label]:.0f} %"
                for one in found.values()
            ),
        ]
        for label in next(iter(found.values()))["costs"]
    ]
    timing = GUARANTEES.read()["time"]
    seconds = sorted(timing["seconds"])
    return [
        "",
        "Mean cost at δ = 0.1, accuracy drop at most 1 %, 2,000 calibration samples; in brackets the saving as a share of what the best "
        "thresholds save that the *test* samples themselves would choose (hindsight), and how often the drop on the test samples was above 1 %.",
        "",
        *table(["", *found], rows),
        "",
        f"{timing['samples']:,} samples, {timing['exits']} exits, three risks: {seconds[len(seconds) // 2]:.2f} s on one core (median of "
        f"{len(seconds)}; {seconds[0]:.2f} to {seconds[-1]:.2f}), {timing['peak_mb_of_the_process']:,} MB for the whole process, PyTorch included.",
    ]


def write_gates() -> list[str]:
    rows = []
    for name, found in read_parts("gate-").items():
        for row in found["rows"].values():
            change = f"{100 * row['cost_change']:+.1f} ± {100 * row['cost_change_error']:.1f} %"
            plain, gated = (f"{row[f'cost{s}']:.3f} ({row[f'divergence{s}']:.4f})" for s in ("", "_gated"))
            rows.append([name, f"{row['limit']:.4f}", plain, gated, change, f"{100 * row['used']:.0f} %"])
    return [
        "Cost on samples that did not choose the policy, limits on divergence at 20, 40, 60 and 80 % of exit 0's mean divergence and 2 % on accuracy; "
        "means over splits, in brackets the divergence that was measured. Change: of the cost by the gate, with its standard error.",
        "",
        *table(["", "limit", "without gate", "with gate", "change of cost", "gate kept"], rows),
    ]


def write_drifts() -> list[str]:
    found = GUARANTEES.read()["drift"]
    rows = []
    for key, one in found.items():
        if isinstance(one, dict) and "warned" in one:
            at = f"changes {key}{' samples' if key[-1] == '0' else ''}"
            rows.append([at, f"{100 * one['warned']:.1f} %", str(one["median_delay"])])
    alarms = f"false alarms in {100 * found['unchanged, 10,000 samples']['alarms']:.1f} % of the runs"
    return [
        f"The demo's network, calibrated with a certificate; then backgrounds agree with the class in 10 % instead of 80 % of the scenes. {found['runs']} runs each:",
        "",
        *table(
            ["", "warned within 500 samples", "median delay"],
            [*rows, ["never changes, 10,000 samples", alarms, ""]],
        ),
    ]


def write_groups() -> list[str]:
    found = GUARANTEES.read()["groups"]
    sets, draws = found["sets"], found["draws"]
    rows = []
    for label in sets:
        kind, mode, risks = _split_label(label)
        cost = next(row["cost"] for row in sets[label].values() if (row["limit"], row["delta"]) == (0.05, 0.1))
        broken = ", ".join(f"{find_worst(sets, label, delta):.3f}" for delta in DELTAS)
        rows.append([kind, f"*{mode}*" if mode == "not named" else mode, risks, broken, f"{cost:.3f}"])
    return [
        f"{draws:,} draws of {found['groups']} groups of 1 to 50 samples, a third from each of three populations whose risks are known: of some "
        "groups the early exits are wrong about most samples, and sure. Share of calibrations after which a risk was above its limit (the worst over "
        "limits of 2, 5 and 10 %; the risk is the mean over samples, or over groups where all count the same), for δ = 0.05, 0.1, 0.2; mean cost at "
        "5 % and δ = 0.1.",
        "",
        *table(["population", "groups", "risks", "broken", "cost"], rows),
        "",
        *_write_watch(),
        "",
        *_write_families(),
    ]


def _split_label(label: str) -> tuple[str, str, str]:
    kind, *mode, risks = label.split(", ")
    return kind, ", ".join(mode), risks


def _write_watch() -> list[str]:
    watch = GUARANTEES.read()["watch-groups"]
    named, other = (100 * watch[name]["alarms"] for name in ("named", "not named"))
    return [
        f"The drift watch on {watch['groups']} new groups of the same populations, {watch['runs']} runs: false alarms in {named:.1f} % where groups "
        f"are named, in {other:.1f} % where they are not."
    ]


def _write_families() -> list[str]:
    found, rows = GUARANTEES.read()["families"], []
    for kind, sets in found.items():
        for name, orders in sets.items() if isinstance(sets, dict) else ():
            cells = [
                f"{one['rank']:.2f} ({one['deviation']:.0f}){' **warned**' if one['warned'] else ''}"
                for one in orders.values()
            ]
            rows.append([kind, name, *cells])
    return [
        "The warning, for networks trained on other pictures: the mean rank at that distance in the order at which it is furthest below 0.5, and "
        "in brackets by how many standard errors.",
        "",
        *table(["", "", "as they come", "sorted by class", "shuffled"], rows),
    ]


def main() -> None:
    GUARANTEES.fold()
    fill("guarantees", [*write_violations(), *write_savings()])
    fill("labels", write_labels())
    fill("groups", write_groups())
    fill("gate", write_gates())
    fill("drift", write_drifts())


if __name__ == "__main__":
    main()
