"""The promises of docs/measured/static.md: ours minus the static network of equal time, means over seeds, paired by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.promises import Promise
from benchmarks.static.candidates import RIVALS
from benchmarks.static.compare import Runs, find_timed_seeds, find_whole_seeds, list_differences, list_tests, of_test
from benchmarks.static.runs import ADAPTIVE, TIME
from benchmarks.study.report.figures import interval
from benchmarks.truth.tasks import SEEDS

AGREE, DISAGREE, LOST = 0.5, 5.0, 0.3  # points
EARLY = ((0.25, 0.75), (0.5, 0.92))  # pictures: time up to which an exit stands, and the share of the final accuracy it has
SPEED = {"scenes": 2.7, "fashion": 2.7, "pictures": 2.0}
BARS = {"scenes": {"agreeing": AGREE, "disagreeing": DISAGREE}, "pictures": {"test": AGREE}}


def list_promises(runs: Runs) -> Iterator[Promise]:
    """Those of the tasks of which all runs are there that they are about."""
    for task in SPEED:
        seeds = find_timed_seeds(runs, task)
        if len(seeds) == SEEDS[task]:
            yield from _list_speeds(runs, task, seeds)
            yield from _list_early(runs, task, seeds) if task == "pictures" else ()
    for task, bars in BARS.items():
        seeds = find_whole_seeds(runs, task)
        if len(seeds) < SEEDS[task]:
            continue
        for test, bar in bars.items():
            middle, half = interval(list_differences(runs, task, seeds, RIVALS[task], test))
            what = f"{task}, {test}: accuracy over the static network of equal time, points"
            yield Promise(f"static|{task}|{test}", what, middle, ">=", bar, half)


def _list_speeds(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """Speed and what is lost on test data, by the thresholds that held-out validation data allow.

    Held to the full network's accuracy there, and (``own``) to our own final exit's, which is known better: it answers the same
    samples by nearly the same weights.
    """
    first = list_tests(runs, task)[0]
    pick = of_test(first, "accuracy")
    ours, times = ([runs[f"{task}/{name}-{seed}"] for seed in seeds] for name in (ADAPTIVE, TIME))
    found = {
        "": (
            [one["full_over_fast"][0] for one in times],
            [pick(one["full"]) - pick(one["fast"]) for one in ours],
            "the full network",
        ),
        "|own": (
            [one["full_over_adaptive"][first][0] for one in times],
            [one["tests"][first]["exit_accuracy"][-1] - pick(one) for one in ours],
            "our own final exit",
        ),
    }
    for key, (ratios, lost, held_to) in found.items():
        ratio, half = interval(ratios)
        what = f"{task}: times as fast as the full network, batch 64, held to {held_to}"
        yield Promise(f"static|speed|{task}{key}", what, ratio, ">=", SPEED[task], half)
        points, half = interval([100 * one for one in lost])
        what = f"{task}: points lost at that speed to {held_to}, {first}"
        yield Promise(f"static|lost|{task}{key}", what, points, "<=", LOST, half)


def _list_early(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """What the exits are worth that answer in a quarter and in half of the full network's time; none is worth nothing."""
    first = list_tests(runs, task)[0]
    for most, bar in EARLY:
        shares = []
        for seed in seeds:
            times = [time for time, _, _ in runs[f"{task}/{TIME}-{seed}"]["exit_share"].values()]
            accuracy = runs[f"{task}/{ADAPTIVE}-{seed}"]["tests"][first]["exit_accuracy"]
            within = [right for right, time in zip(accuracy, times, strict=True) if time <= most]
            shares.append(max(within, default=0.0) / accuracy[-1])
        middle, half = interval(shares)
        what = f"{task}: accuracy of the exit at {100 * most:.0f} % of the time over the final exit's"
        yield Promise(f"static|early|{task}|{most}", what, middle, ">=", bar, half)
