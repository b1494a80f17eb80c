"""Writes the tables of docs/measured/texts.md from texts.csv.

Usage: python -m benchmarks.texts.page
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from benchmarks.markdown import ROOT, fill, say_what_is_missing, table
from benchmarks.promises import add_reasons
from benchmarks.store import Tree
from benchmarks.texts.promises import list_promises, measure_deletion
from benchmarks.texts.runs import CONDITIONS, SEEDS, TEXTS, list_runs, name_run, read_plain
from benchmarks.truth.conditions import EGT, PLAIN, TITLES
from benchmarks.truth.page import write_promises
from benchmarks.truth.runs import TRUTH
from benchmarks.truth.tasks import TOKENS
from exitlens.functional.maps import skill

Runs = Mapping[str, Tree]
Pick = Callable[[Tree], Sequence[float]]


def find_runs(runs: Runs, condition: str) -> list[Tree]:
    """Those of a condition that are there, by seed."""
    return [runs[name] for seed in SEEDS if (name := name_run(condition, seed)) in runs]


def average(found: Sequence[Tree], pick: Pick, digits: int = 2, scale: float = 1) -> str:
    """Means over runs, exit by exit."""
    columns = zip(*(pick(one) for one in found), strict=True)
    return " / ".join(f"{scale * mean(column):.{digits}f}" for column in columns)


def write_answers(runs: Runs, plain: Sequence[float]) -> list[str]:
    """A row for each condition, after that of the plain networks, whose accuracies are given by seed."""
    rows, first = [], None
    if plain:
        rows.append([TITLES[PLAIN], "1", f"{100 * mean(plain):.1f}", ", ".join(f"{100 * one:.1f}" for one in plain), "", ""])
    for condition in CONDITIONS:
        if found := find_runs(runs, condition):
            first, films = first or found[0], [one["sets"]["films"] for one in found]
            cells = [average(found, lambda one: one["cost"]), average(found, lambda one: one["accuracy"], 1, 100)]
            cells += [", ".join(f"{100 * one['accuracy'][-1]:.1f}" for one in found)]
            cells += [", ".join(f"{one['cost']:.2f} ({100 * one['drop']:.1f})" for one in films)]
            rows.append([TITLES[condition], *cells, ", ".join(f"{100 * one['early']:.0f}" for one in found)])
    head = ["", "cost, exit 0 to final", "accuracy, %", "final, by seed, %"]
    lines = table([*head, "certified: cost (points lost), by seed", "of it, leave by half the cost, %"], rows)
    if first is None:
        return lines
    cut = f"The network reads {TOKENS} tokens, which cuts {100 * first['cut']:.0f} % of the {first['texts']:,} test sentences; 95 % of them have "
    return [f"{cut}{first['length_95']:.0f} tokens or fewer.", "", *lines]


def write_maps(runs: Runs) -> list[str]:
    rows = []
    for condition in CONDITIONS:
        if found := find_runs(runs, condition):
            maps = [one["maps"] for one in found]
            cells = [average(maps, _over_random)]
            cells += [average(maps, _over_matched)]
            cells += [average(maps, lambda one: one["attention"]["pointing"])]
            cells += [average(maps, lambda one: one["attention"]["matched"])]
            cells += [average(maps, lambda one: one["carried"]["pointing"])]
            cells += [average(maps, lambda one: one["attention"]["energy"])]
            cells += [average(maps, lambda one: one["relevance"]["pointing"]), average(maps, _skill)]
            rows.append([TITLES[condition], *cells])
    first = next((one for condition in CONDITIONS for one in find_runs(runs, condition)), None)
    if first is None:
        return []
    words, carried = (first["maps"][name] for name in ("attention", "carried"))
    note = (
        f"{words['texts']:,} of {first['texts']:,} test texts have a rated word; a random token of theirs is on one in "
        f"{100 * words['random']:.0f} %. Of {carried['texts']:,} the ratings add up to the sign of the text's own (*carried*). "
        f"Masking out every token of {first['maps']['oracle']['texts']} such texts in turn, the one that exit 0's answer (with EGT) "
        f"depends on most is on a rated word in {_join(runs, 'oracle')} %; the largest of exit 0's map, on the same texts, in "
        f"{_join(runs, 'beside_oracle')} %."
    )
    head = ["", "deletion over random", "over maps of other texts", "largest token on a rated word", "of another text's map"]
    more = ["carried: on a rated word", "share of the map on rated words", "of the final answer's relevance", "skill"]
    return [note, "", *table([*head, *more], rows)]


def _join(runs: Runs, of: str) -> str:
    """By seed, of the networks with EGT."""
    return ", ".join(f"{100 * one['maps'][of]['pointing'][0]:.0f}" for one in find_runs(runs, EGT))


def _over_random(maps: Tree) -> list[float]:
    return [measure_deletion(maps["deletion"], k) for k in range(len(maps["deletion"]["deletion"]))]


def _over_matched(maps: Tree) -> list[float]:
    found = maps["deletion"]
    return [a - b for a, b in zip(found["deletion"], found["deletion_matched"], strict=True)]


def _skill(maps: Tree) -> list[float]:
    return [skill(a, b) for a, b in zip(maps["agreement"]["cc"], maps["agreement"]["null"], strict=True)]


def write_transfer(runs: Runs) -> list[str]:
    found = find_runs(runs, EGT)
    rows = []
    for name in found[0]["sets"] if found else ():
        sets = [one["sets"][name] for one in found]
        cells = [
            f"{sets[0]['texts']:,}",
            f"{100 * sets[0]['positive']:.0f}",
            average(sets, lambda one: one["accuracy"], 1, 100),
        ]
        cells += [f"{100 * mean(one['drop'] for one in sets):.1f}", f"{mean(one['cost'] for one in sets):.2f}"]
        alarms = ", ".join(f"{one['alarms']} of {one['orders']}" for one in sets)
        medians = [one["median"] for one in sets]
        cells += [alarms, ", ".join("none" if one is None else f"{one:.0f}" for one in medians)]
        rows.append([name if name != "films" else "films (test part)", *cells])
    head = ["texts", "number", "positive, %", "accuracy, exit 0 to final, %", "points lost by the policy", "cost"]
    return table([*head, "alarms, by seed", "median texts to the alarm"], rows) if rows else []


def main() -> None:
    TEXTS.fold()
    runs = TEXTS.read()
    missing = say_what_is_missing(list(list_runs()), runs, "python -m benchmarks.texts")
    truth = TRUTH.read()
    fill("texts-answers", [*missing, *write_answers(runs, read_plain(truth))])
    fill("texts-maps", write_maps(runs))
    fill("texts-transfer", write_transfer(runs))
    fill("texts-promises", write_promises(list(add_reasons(list_promises(runs, truth)))))
    print(f"wrote the tables of {ROOT / 'docs' / 'measured' / 'texts.md'}")


if __name__ == "__main__":
    main()
