"""Writes the tables of docs/measured/static.md from static.csv.

Usage: python -m benchmarks.static.page
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks.markdown import ROOT, fill, say_what_is_missing, table
from benchmarks.promises import add_reasons
from benchmarks.static import compare
from benchmarks.static.candidates import CANDIDATES, FAMILIES, RIVALS, list_families
from benchmarks.static.compare import Pick, Runs, of_test
from benchmarks.static.jobs import list_runs
from benchmarks.static.promises import list_promises
from benchmarks.static.runs import ADAPTIVE, STATIC, TIME
from benchmarks.static.timing import FULL
from benchmarks.study.report.figures import interval
from benchmarks.truth.page import TASK_TITLES, write_promises
from benchmarks.truth.tasks import SEEDS


def write_task(runs: Runs, task: str) -> list[str]:
    """Ours beside the full network and the static ones of equal time, then every static network that was trained."""
    seeds, networks = compare.find_whole_seeds(runs, task), write_networks(runs, task)
    if not networks:
        return []
    lines = [*write_equal_time(runs, task, seeds), ""] if seeds else []
    folded = ["<details><summary>Every static network</summary>", "", *networks, "", "</details>", ""]
    return [f"**{TASK_TITLES[task]}**", "", *lines, *folded]


def write_equal_time(runs: Runs, task: str, seeds: Sequence[int]) -> list[str]:
    """Means over the seeds of which everything is there."""
    tests, rival = compare.list_tests(runs, task), RIVALS[task]
    ours = [runs[f"{task}/{ADAPTIVE}-{seed}"] for seed in seeds]
    full = [mean(runs[f"{task}/{TIME}-{seed}"]["ms"][FULL][0] for seed in seeds)]
    times = _average_times(runs, task, seeds, tests)
    rows = [_row("plain full network", full, *_measure([one["full"] for one in ours], tests))]
    rows.append(_row("**ours**", times, *_measure(ours, tests)))
    fast = [[mean(runs[f"{task}/{TIME}-{seed}"]["fast_ms"][0] for seed in seeds)]]
    rows.append(_row("ours, 0.3 points below the full network", *fast, *_measure([one["fast"] for one in ours], tests)))
    for family in list_families(task):
        note, trained = (", the rival", seeds) if family == rival else (", seed 0" if len(seeds) > 1 else "", seeds[:1])
        figures = _interpolate(runs, task, trained, family, tests)
        rows.append(_row(f"static, {FAMILIES[family]}{note}", _average_times(runs, task, trained, tests), *figures))
    head = ["", "ms a sample", "accuracy, %", "agreement with the full network, %", "points lost by the shift"]
    differences = [(test, compare.list_differences(runs, task, seeds, rival, test)) for test in tests]
    words = [f"{test} {_write_interval(values)}" for test, values in differences]
    fast_one = compare.list_differences(runs, task, seeds, rival, tests[0], fast=True)
    return [
        f"Means over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}{_name_tests(tests)}.",
        "",
        *table(head, rows),
        "",
        _write_exits(runs, task, seeds, tests[0]),
        "",
        f"Ours minus the rival, points of accuracy: {'; '.join(words)}. {_write_winners(differences)} "
        f"At 0.3 points below the full network: {tests[0]} {_write_interval(fast_one)}.",
    ]


def _name_tests(tests: Sequence[str]) -> str:
    return f", test sets {', '.join(tests)} one after the other" if len(tests) > 1 else ""


def _write_exits(runs: Runs, task: str, seeds: Sequence[int], test: str) -> str:
    """What each exit takes and is worth if it answers everything."""
    shares = [[time for time, _, _ in runs[f"{task}/{TIME}-{seed}"]["exit_share"].values()] for seed in seeds]
    right = [runs[f"{task}/{ADAPTIVE}-{seed}"]["tests"][test]["exit_accuracy"] for seed in seeds]
    time, accuracy = (
        " / ".join(f"{100 * mean(one):.{digits}f}" for one in zip(*values, strict=True))
        for values, digits in ((shares, 0), (right, 1))
    )
    return f"Our exits, were they to answer everything, take {time} % of the full network's time, and {accuracy} % are right ({test})."


def _average_times(runs: Runs, task: str, seeds: Sequence[int], tests: Sequence[str]) -> list[float]:
    """Milliseconds a sample that ours took on every test set."""
    return [mean(compare.find_time(runs, task, seed, test) for seed in seeds) for test in tests]


def _measure(found: Sequence[dict[str, object]], tests: Sequence[str]) -> tuple[list[float], ...]:
    """Accuracy and agreement on every test set, and what is lost from the first to each other."""
    accuracy, agreement = (
        [mean(of_test(test, measure)(one) for one in found) for test in tests] for measure in ("accuracy", "agreement")
    )
    return accuracy, agreement, [accuracy[0] - one for one in accuracy[1:]]


def _interpolate(runs: Runs, task: str, seeds: Sequence[int], family: str, tests: Sequence[str]) -> tuple[list[float], ...]:
    """The same of the static network of equal time: the shift of one network, that of the time on the first test set."""

    def find(at: str, pick: Pick) -> float:
        return mean(compare.at_equal_time(runs, task, seed, family, at, pick) for seed in seeds)

    accuracy, agreement = ([find(test, of_test(test, measure)) for test in tests] for measure in ("accuracy", "agreement"))
    first = tests[0]
    lost = [
        find(first, lambda one, test=test: of_test(first, "accuracy")(one) - of_test(test, "accuracy")(one))  # type: ignore[misc]
        for test in tests[1:]
    ]
    return accuracy, agreement, lost


def _row(title: str, times: Sequence[float], *shares: Sequence[float]) -> list[str]:
    cells = [" / ".join(f"{100 * one:.1f}" for one in values) for values in shares]
    return [title, " / ".join(f"{one:.3f}" for one in times), *cells]


def _write_interval(values: Sequence[float]) -> str:
    middle, half = interval(values)
    return f"{middle:+.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")


def _write_winners(differences: Sequence[tuple[str, list[float]]]) -> str:
    """Where the 95 % interval of the mean difference is on one side of zero."""
    places: dict[str, list[str]] = {"Ours wins": [], "The static network wins": [], "Not decided": []}
    for test, values in differences:
        middle, half = interval(values)
        verdict = "Ours wins" if middle > half else "The static network wins" if -middle > half else "Not decided"
        places[verdict].append(test)
    return " ".join(f"{verdict}: {', '.join(tests)}." for verdict, tests in places.items() if tests)


def write_networks(runs: Runs, task: str) -> list[str]:
    """Every static network by itself, with its time where that was measured, and where it is ours's nearest from above."""
    rows: list[list[str]] = []
    timed = [runs[name] for seed in range(SEEDS[task]) if (name := f"{task}/{TIME}-{seed}") in runs]
    for name, candidate in CANDIDATES[task].items():
        found = [runs[run] for seed in range(SEEDS[task]) if (run := f"{task}/{name}-{seed}") in runs]
        if found:
            tests = list(found[0]["tests"])
            accuracy, agreement, _ = _measure(found, tests)
            with_it = [one for one in timed if name in one["ms"]]
            ms = [f"{mean(one['ms'][name][0] for one in with_it):.3f}"] if with_it else [""]
            near = [test for test in tests for one in with_it if one["chosen"][candidate.family][test] == name]
            nearest = ", ".join(f"{test} ({near.count(test)})" for test in dict.fromkeys(near))
            rows.append([candidate.title, str(len(found)), *ms, *_row("", [], accuracy, agreement)[2:], nearest])
    head = [
        "static network",
        "seeds",
        "ms a sample",
        "accuracy, %",
        "agreement, %",
        "nearest to ours, not faster, on (seeds)",
    ]
    return table(head, rows) if rows else []


def main() -> None:
    STATIC.fold()
    runs = STATIC.read()
    names = ["{}/{}-{}".format(*one) for timed in (False, True) for one in list_runs(timed)]
    lines = [*say_what_is_missing(names, runs, "make static"), *(line for task in SEEDS for line in write_task(runs, task))]
    fill("static", [*lines, *write_promises(list(add_reasons(list_promises(runs))))])
    print(f"wrote the tables of {ROOT / 'docs' / 'measured' / 'static.md'}")


if __name__ == "__main__":
    main()
