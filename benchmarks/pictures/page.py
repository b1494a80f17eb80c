"""Writes the tables of docs/measured/pictures.md from pictures.csv.

Usage: python -m benchmarks.pictures.page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.markdown import ROOT, fill, table
from benchmarks.pictures.measure import LIMITS, list_policies
from benchmarks.pictures.promises import MOST_RATIO, list_promises
from benchmarks.pictures.runs import PICTURES, SEEDS
from exitlens.types.outputs import exit_name

Runs = Mapping[str, dict[str, Any]]


def of_kind(runs: Runs, kind: str) -> list[dict[str, Any]]:
    """The runs of one kind by seed, those that are there."""
    return [runs[f"{kind}-{seed}"] for seed in SEEDS if f"{kind}-{seed}" in runs]


def list_seeds(runs: Runs) -> list[int]:
    """Seeds of which both networks are there."""
    return [seed for seed in SEEDS if f"pair-{seed}" in runs]


def average(found: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Means over runs of a list with a value for each exit."""
    return [mean(values) for values in zip(*(one[key] for one in found), strict=True)]


def write_accuracy(runs: Runs) -> list[str]:
    plain, exits, pairs = (of_kind(runs, kind) for kind in ("plain", "exits", "pair"))
    accuracy, cost = average(exits, "accuracy"), average(exits, "cost")
    skill, energy = [*average(exits, "skill"), None], average(exits, "energy")
    rows = [["plain network", "1", *_points(one["accuracy"][0] for one in plain), "", ""]]
    for k in range(len(accuracy)):
        by_seed = _points(one["accuracy"][k] for one in exits)
        agreement = "" if skill[k] is None else f"{skill[k]:.2f}"
        rows.append([exit_name(k, len(accuracy)), f"{cost[k]:.2f}", *by_seed, agreement, f"{100 * energy[k]:.0f} %"])
    difference = [100 * pair["difference"] for pair in pairs]
    differences = ", ".join(f"{one:+.1f}" for one in difference)
    first = exits[0]
    return [
        f"Accuracy in % on {first['pictures']:,} test pictures of {first['drawings']} drawings, {first['epochs']} epochs, for seeds "
        f"{', '.join(map(str, list_seeds(runs)))} and in the mean; skill of the maps' agreement with the final map; attention "
        f"that lies on the drawing, which covers {100 * mean(one['area'] for one in exits):.0f} % of a picture.",
        "",
        *table(["", "cost", *[f"seed {seed}" for seed in list_seeds(runs)], "mean", "skill", "on the drawing"], rows),
        "",
        f"Final exit minus the plain network: {differences} points, {mean(difference):+.2f} in the mean. Other test drawings would move the "
        f"difference of one seed by {100 * mean(pair['error'] for pair in pairs):.1f} points (standard error over drawings).",
    ]


def _points(values: Any) -> list[str]:
    values = list(values)
    return [*(f"{100 * value:.1f}" for value in values), f"**{100 * mean(values):.1f}**"]


def write_policies(runs: Runs) -> list[str]:
    exits = of_kind(runs, "exits")
    rows = []
    for name, limit, _ in list_policies():
        found = [one["policies"][name] for one in exits]
        costs, drops = ([one[key] for one in found] for key in ("cost", "drop"))
        broken = sum(drop > limit for drop in drops)
        shown = ", ".join(f"{100 * drop:.1f}" for drop in drops)
        rows.append(
            [f"{100 * limit:g} points, {name.partition(', ')[2]}", f"{mean(costs):.2f}", shown, f"{broken} of {len(found)}"]
        )
    return [
        f"Policies certified (δ = 0.1) on {exits[0]['calibration_pictures']:,} pictures of {exits[0]['calibration_drawings']} "
        f"drawings, to lose at most {', '.join(f'{100 * limit:g}' for limit in LIMITS)} points: told which pictures show one drawing, and not.",
        "",
        *table(["limit", "cost on test pictures", "points lost, by seed", "above the limit"], rows),
    ]


def write_steps(runs: Runs) -> list[str]:
    step = runs["step-0"]
    ratio, low, high = step["ratio"]
    return [
        f"A training step (batches of {step['batch']}, bfloat16, channels_last, one thread) takes {ratio:.2f} times the "
        f"plain network's (quartiles {low:.2f} and {high:.2f} of {step['rounds']} pairs of steps taken in turns; promised: at most "
        f"{MOST_RATIO}); the medians of each network's own steps differ by {step['exits_seconds'] / step['plain_seconds']:.2f}.",
    ]


def write_promises(runs: Runs) -> list[str]:
    rows = [
        [one.what, f"{one.measured:.2f}", f"{one.sense} {one.bar}", "yes" if one.is_kept else "no"]
        for one in list_promises(runs)
    ]
    return table(["promise", "measured", "bar", "kept"], rows) if rows else []


def write_networks(runs: Runs) -> list[str]:
    """What there is of the comparison so far."""
    seeds = list_seeds(runs)
    if not seeds:
        return ["Not measured yet: `python -m benchmarks.pictures` (six networks, resumable)."]
    done = {name: found for name, found in runs.items() if int(name.rpartition("-")[2]) in seeds}
    first = [f"So far {len(seeds)} of {len(SEEDS)} seeds.", ""] if len(seeds) < len(SEEDS) else []
    return [*first, *write_accuracy(done), "", *write_policies(done)]


def main() -> None:
    PICTURES.fold()
    runs = PICTURES.read()
    networks = write_networks(runs)
    steps = write_steps(runs) if "step-0" in runs else []
    fill("pictures", [*networks, "", *steps, "", *write_promises(runs)])
    fill("photos", networks, [ROOT / "examples" / "photos.md"])


if __name__ == "__main__":
    main()
