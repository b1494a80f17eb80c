"""The promises of docs/texts.md: means over seeds, differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from benchmarks.promises import Promise
from benchmarks.store import Tree
from benchmarks.study.report.figures import interval
from benchmarks.texts.runs import SEEDS, name_run
from benchmarks.truth.conditions import EGT, WITHOUT

DIFFERENCE, EARLY, LEAST, FALSE_ALARMS = -0.3, 0.5, 0.6, 0.05
POINTING = {
    "attention": "exit 0's largest token on a rated word, all texts with one",
    "carried": "the same, of texts whose rated words add up to their own rating",
}
NOTICED = ("products", "tweets")
Runs = Mapping[str, Tree]


def list_promises(runs: Runs, plain: Sequence[float]) -> Iterator[Promise]:
    """All, once the networks of all seeds are there; ``plain``: accuracy of the plain networks, by seed."""
    names = [[name_run(condition, seed) for seed in SEEDS] for condition in (EGT, WITHOUT)]
    if not all(name in runs for one in names for name in one) or len(plain) < len(SEEDS):
        return
    ours, without = ([runs[name] for name in one] for one in names)
    points = [100 * (a["accuracy"][-1] - b) for a, b in zip(ours, plain, strict=True)]
    yield _mean("final", "final exit minus the plain network, points", points, DIFFERENCE)
    yield _mean("early", "share that leaves by half the cost, certified", [one["early"] for one in ours], EARLY)
    last = len(ours[0]["cost"]) - 1
    for k in range(last + 1):
        gain = [measure_deletion(a, k) - measure_deletion(b, k) for a, b in zip(ours, without, strict=True)]
        name = "final exit" if k == last else f"exit {k}"
        yield _mean(f"deletion|{k}", f"deletion over random tokens, {name}, over the same without EGT", gain, 0)
    for of, what in POINTING.items():
        mine, others = ([float(one["maps"][of]["pointing"][0]) for one in some] for some in (ours, without))
        yield _mean(f"pointing|{of}", what, mine, LEAST)
        gain = [a - b for a, b in zip(mine, others, strict=True)]
        yield _mean(f"pointing|{of}|gain", f"{what}, over the same without EGT", gain, 0)
    for name in NOTICED:
        noticed = [one["sets"][name]["alarms"] / one["sets"][name]["orders"] for one in ours]
        yield _mean(f"drift|{name}", f"drift watch, films to {name}: orders with an alarm", noticed, 1)
    false = mean(one["sets"]["films"]["alarms"] / one["sets"]["films"]["orders"] for one in ours)
    what = "drift watch, the films' own test part: orders with an alarm"
    yield Promise("texts|drift|films", what, false, "<=", FALSE_ALARMS)


def measure_deletion(run: Tree, k: int) -> float:
    """What deleting the top tokens of exit k's map costs its answer, over what random ones cost."""
    found = run["maps"]["deletion"]
    return float(found["deletion"][k] - found["deletion_random"][k])


def _mean(key: str, what: str, values: list[float], bar: float) -> Promise:
    middle, half = interval(values)
    return Promise(f"texts|{key}", f"texts: {what}", middle, ">=", bar, half)
