"""The promises of docs/measured/texts.md: means over seeds, differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean

from benchmarks.promises import Promise
from benchmarks.store import Tree
from benchmarks.study.report.figures import interval
from benchmarks.texts.runs import SEEDS, name_run, read_plain
from benchmarks.truth.conditions import EGT, PLAIN, WITHOUT

DIFFERENCE, EARLY, LEAST, FALSE_ALARMS = -0.3, 0.5, 0.6, 0.05
POINTING = {
    "attention": "exit 0's largest token on a rated word, all texts with one",
    "carried": "the same, of texts whose rated words add up to their own rating",
}
NOTICED = ("products", "tweets")
Runs = Mapping[str, Tree]


def list_promises(runs: Runs, truth: Runs) -> Iterator[Promise]:
    """All, once the networks with EGT of all seeds are there, and those of ``truth`` (docs/measured/truth.md) on the same texts."""
    names = [[name_run(condition, seed) for seed in SEEDS] for condition in (EGT, WITHOUT, PLAIN)]
    if not all(name in runs for name in names[0]) or not all(name in truth for one in names for name in one):
        return
    ours = [runs[name] for name in names[0]]
    points = [100 * (a["accuracy"][-1] - b) for a, b in zip(ours, read_plain(truth), strict=True)]
    yield _mean("final", "final exit minus the plain network, points", points, DIFFERENCE)
    yield _mean("early", "share that leaves by half the cost, certified", [one["early"] for one in ours], EARLY)
    yield from _of_deletion(*([truth[name]["attention"] for name in one] for one in names[:2]))
    pairs = [(one, runs[name]) for one, name in zip(ours, names[1], strict=True) if name in runs]
    for of, what in POINTING.items():
        yield _mean(f"pointing|{of}", what, [_point(one, of) for one in ours], LEAST)
        gain = [_point(one, of) - _point(other, of) for one, other in pairs]
        seeds = f" ({len(pairs)} of {len(ours)} seeds)" if len(pairs) < len(ours) else ""
        if pairs:
            yield _mean(f"pointing|{of}|gain", f"{what}, over the same without EGT{seeds}", gain, 0)
    for name in NOTICED:
        noticed = [one["sets"][name]["alarms"] / one["sets"][name]["orders"] for one in ours]
        yield _mean(f"drift|{name}", f"drift watch, films to {name}: orders with an alarm", noticed, 1)
    false = mean(one["sets"]["films"]["alarms"] / one["sets"]["films"]["orders"] for one in ours)
    what = "texts: drift watch, the films' own test part: orders with an alarm"
    yield Promise("texts|drift|films", what, false, "<=", FALSE_ALARMS)


def _of_deletion(ours: list[Tree], without: list[Tree]) -> Iterator[Promise]:
    last = len(ours[0]["deletion"]) - 1
    for k in range(last + 1):
        gain = [measure_deletion(a, k) - measure_deletion(b, k) for a, b in zip(ours, without, strict=True)]
        name = "final exit" if k == last else f"exit {k}"
        yield _mean(f"deletion|{k}", f"deletion over random tokens, {name}, over the same without EGT", gain, 0)


def measure_deletion(found: Tree, k: int) -> float:
    """What deleting the top tokens of exit k's map costs its answer, over what random ones cost."""
    return float(found["deletion"][k] - found["deletion_random"][k])


def _point(run: Tree, of: str) -> float:
    return float(run["maps"][of]["pointing"][0])


def _mean(key: str, what: str, values: list[float], bar: float) -> Promise:
    middle, half = interval(values)
    return Promise(f"texts|{key}", f"texts: {what}", middle, ">=", bar, None if half == float("inf") else half)
