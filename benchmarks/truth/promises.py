"""The promises of docs/measured/truth.md, of means over seeds; differences are paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean

from benchmarks.promises import Promise
from benchmarks.store import Tree
from benchmarks.study.report.figures import interval
from benchmarks.truth.conditions import CONTROL, EGT, PLAIN, WITHOUT
from benchmarks.truth.tasks import SEEDS, count_seeds

LEAST_SHARE = {"scenes": 0.9, "pictures": 0.8, "vit": 0.7, "reviews": 0.7}  # of early exits beyond FROM
LEAST_SKILL = {"scenes": 0.92, "pictures": 0.85, "reviews": 0.9}
FROM, FINAL_SHARE, ENERGY, DIFFERENCE = 0.3, 0.9, 0.75, -0.3
EARLY = ((0.25, 0.75), (0.5, 0.92))  # cost up to which an exit stands, and the share of the final accuracy it has
Runs = Mapping[str, Tree]


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Those of the tasks of which all seeds of both networks are there."""
    for task, seeds in SEEDS.items():
        names = [[f"{task}/{condition}-{seed}" for seed in range(seeds)] for condition in (EGT, WITHOUT, PLAIN)]
        if all(name in runs for one in names for name in one):
            ours, without, plain = ([runs[name] for name in one] for one in names)
            yield from _of_task(task, ours, without, plain)
            control = [f"{task}/{CONTROL}-{seed}" for seed in range(count_seeds(task, CONTROL))]
            if all(name in runs for name in control):
                yield from _of_control(task, ours, [runs[name] for name in control])


def _of_task(task: str, ours: list[Tree], without: list[Tree], plain: list[Tree]) -> Iterator[Promise]:
    cost = ours[0]["cost"]
    deep = [k for k in range(len(cost) - 1) if cost[k] > FROM]
    for k in (*deep, len(cost) - 1) if task in LEAST_SHARE else ():
        name, bar = ("final exit", FINAL_SHARE) if k == len(cost) - 1 else (f"exit {k}", LEAST_SHARE[task])
        shares = [share for share in _shares(ours, k) if share is not None]
        yield _mean(f"{task}|share|{k}", f"{task}: faithfulness share, {name}", shares, ">=", bar)
    for k in range(len(cost)):
        gain = _subtract_shares(ours, without, k)
        if gain:
            seeds = f" ({len(gain)} of {len(ours)} seeds)" if len(gain) < len(ours) else ""
            what = f"{task}: faithfulness share, exit {k}, over the same without EGT{seeds}"
            yield _mean(f"{task}|gain|{k}", what, gain, ">=", 0)
    if task in LEAST_SKILL:
        skill = [mean(one["skill"][k] for k in deep) for one in ours]
        what = f"{task}: skill, mean over early exits beyond 30 % of the cost"
        yield _mean(f"{task}|skill", what, skill, ">=", LEAST_SKILL[task])
    first = next(iter(ours[0]["tests"]))
    points = [100 * (a - b) for a, b in zip(_accuracy(ours, first, -1), _accuracy(plain, first, -1), strict=True)]
    yield _lower_end(f"{task}|final", f"{task}: final exit minus plain, points", points, DIFFERENCE)
    if task == "scenes":
        yield from _of_scenes(ours, without)
    if task == "pictures":
        for most, bar in EARLY:
            k = max(k for k in range(len(cost)) if cost[k] <= most + 0.02)
            accuracy = zip(_accuracy(ours, first, k), _accuracy(ours, first, -1), strict=True)
            what = f"pictures: accuracy of the exit at {100 * most:.0f} % of the cost over the final exit's"
            yield _mean(f"pictures|early|{most}", what, [a / b for a, b in accuracy], ">=", bar)


def _of_control(task: str, ours: list[Tree], control: list[Tree]) -> Iterator[Promise]:
    """Maps pulled towards those of other samples have to lose, or agreement would mean nothing."""
    early = range(len(ours[0]["cost"]) - 1)
    pairs = list(zip(ours, control, strict=False))  # the control has fewer seeds
    skill = [mean(a["skill"]) - mean(b["skill"]) for a, b in pairs]
    shares = [[gain for k in early for gain in _subtract_shares([a], [b], k)] for a, b in pairs]
    share = [mean(gains) for gains in shares if gains]
    for name, values in (("skill", skill), ("faithfulness share", share)):
        what = f"{task}: {name} of the early exits, over the control's with targets of other samples"
        if len(values) > 1:
            yield _lower_end(f"{task}|control|{name}", what, values, 0)
        elif values:
            yield Promise(f"truth|{task}|control|{name}", what, values[0], ">=", 0, note="(one seed)")


def _of_scenes(ours: list[Tree], without: list[Tree]) -> Iterator[Promise]:
    for k in range(len(ours[0]["cost"])):
        energy = [one["attention"]["energy_in_mask"][k] for one in ours]
        yield _mean(f"scenes|energy|{k}", f"scenes: energy in the object, exit {k}", energy, ">=", ENERGY)
    for test in ours[0]["tests"]:
        gain = [100 * (a - b) for a, b in zip(_accuracy(ours, test, 0), _accuracy(without, test, 0), strict=True)]
        yield _mean(f"scenes|exit0|{test}", f"scenes, {test}: exit 0 against without EGT, points", gain, ">=", 0)


def _lower_end(key: str, what: str, values: list[float], bar: float) -> Promise:
    middle, half = interval(values)
    return Promise(f"truth|{key}", f"{what}, lower end", middle - half, ">=", bar, note=f"({middle:.2g} ± {half:.2g})")


def _mean(key: str, what: str, values: list[float], sense: str, bar: float) -> Promise:
    middle, half = interval(values)
    return Promise(f"truth|{key}", what, middle, sense, bar, None if half == float("inf") else half)  # type: ignore[arg-type]


def _shares(runs: list[Tree], k: int) -> list[float | None]:
    return [one["attention"]["deletion_share"][k] for one in runs]


def _subtract_shares(runs: list[Tree], others: list[Tree], k: int) -> list[float]:
    """Run by run; without those in which the oracle gained nothing over chance, so that there is no share."""
    pairs = zip(_shares(runs, k), _shares(others, k), strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def _accuracy(runs: list[Tree], test: str, k: int) -> list[float]:
    return [one["tests"][test]["accuracy"][k] for one in runs]
