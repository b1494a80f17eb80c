"""Tables of one data set over conditions and seeds, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.markdown import table
from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.report.figures import (
    PLAIN,
    Pick,
    Rows,
    Run,
    accuracy,
    area,
    consistency,
    faithfulness,
    find_static_areas,
    interval,
    over_seeds,
    pair,
)

WASTED = ("wasteful", "destructive")
SHARES = {  # of what the occlusion oracle reaches over random cells
    "deletion_share": "deletion, share of the oracle's",
    "insertion_share": "insertion, share",
    "relevance_deletion_share": "deletion by relevance, share",
    "relevance_insertion_share": "insertion by relevance, share",
}
OVERVIEW = (
    "plain",
    "static-10",
    "average",
    "joint",
    "distilled",
    "egt-evidence",
    "joint-context",
    "distilled-context",
    "egt",
    "both",
    "permuted",
)


def show(values: Sequence[float], digits: int) -> str:
    """Mean and half width of the 95 % interval."""
    middle, half = interval(list(values))
    return f"{middle:.{digits}f}" if math.isinf(half) else f"{middle:.{digits}f} ± {half:.{digits}f}"


def list_conditions(rows: Rows) -> list[str]:
    return [key for key in CONDITIONS if key in rows]


def name_condition(key: str) -> str:
    condition = CONDITIONS[key]
    return f"({condition.letter}) {condition.title}" if condition.letter else condition.title


def fill_cells(rows: Rows, key: str, picks: Sequence[tuple[Pick | None, int]]) -> list[str]:
    found = []
    for pick, digits in picks:
        try:
            values = [] if pick is None else over_seeds(rows, key, pick)
            found.append("" if not values or any(v != v for v in values) else show(values, digits))
        except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError):
            found.append("")  # a plain network has no early exit, and no agreement
    return found


def only_early(pick: Pick) -> Pick:
    """Only of networks with early exits."""

    def only(found: Run) -> float:
        if len(found["cost"]) < 2:
            raise IndexError
        return pick(found)

    return only


def list_tests(rows: Rows) -> list[str]:
    return list(next(iter(next(iter(rows.values())).values()))["tests"])


def overview_table(rows: Rows) -> list[str]:
    """The conditions that the findings are about, on all test sets, with few columns."""
    tests = list_tests(rows)
    head = ["condition", "skill, mean over early exits", "exit 0, %", "final exit, %", "area, %"]
    lines = []
    for key in OVERVIEW:
        if key in rows:
            first = [only_early(accuracy(0, test)) for test in tests]
            final = [accuracy(-1, test) for test in tests]
            cells = fill_cells(rows, key, [(only_early(consistency("cc", "skill")), 2)])
            cells += [_join(fill_cells(rows, key, [(pick, 1) for pick in picks])) for picks in (first, final)]
            lines.append([name_condition(key), *cells, *fill_cells(rows, key, [(only_early(area), 1)])])
    return table(head, lines)


def _join(cells: list[str]) -> str:
    return " / ".join(cells) if all(cells) else ""


def main_table(rows: Rows) -> list[str]:
    tests = list_tests(rows)
    head = ["condition", "seeds"]
    picks: list[tuple[Pick | None, int]] = []
    for test in tests:
        label = "" if len(tests) == 1 else f", {test}"
        head += [f"accuracy exit 0{label}, %", f"final{label}, %"]
        picks += [(only_early(accuracy(0, test)), 1), (accuracy(-1, test), 1)]
    head += ["skill exit 0", "skill, mean", "KL, mean", "cosine, mean", "area, %", "area, chosen thresholds, %"]
    picks += [(only_early(consistency("cc", "skill", 0)), 2), (only_early(consistency("cc", "skill")), 2)]
    picks += [(only_early(consistency("kl", "value")), 2), (only_early(consistency("cosine", "value")), 2)]
    picks += [(area, 1), (lambda found: 100 * found["area"], 1)]
    lines = [[name_condition(key), str(len(rows[key])), *fill_cells(rows, key, picks)] for key in list_conditions(rows)]
    if areas := find_static_areas(rows):
        shown = show([100 * one for one in areas.values()], 1)
        lines.append(["(i) the plain and the static networks together", str(len(areas)), *[""] * (len(head) - 4), shown, ""])
    return table(head, lines)


def faithfulness_table(rows: Rows) -> list[str]:
    head = ["condition", "exit", "deletion", "random cells", "insertion", "random cells", "after head randomisation, CC"]
    masks = next(iter(next(iter(rows.values())).values()))["faithfulness"]["energy_in_mask"] is not None
    head += ["energy in the object", "pointing game"] if masks else []
    shares = {name: title for name, title in SHARES.items() if _is_measured(rows, name)}
    head += shares.values()
    lines = []
    for key in list_conditions(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            names = ["deletion_random", "insertion", "insertion_random", "randomised_cc"]
            names += ["energy_in_mask", "pointing_game"] if masks else []
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["faithfulness"]["deletion"][k], 3)]  # type: ignore[misc]
            picks += [(faithfulness(name, k), 3) for name in names]
            picks += [(faithfulness(name, k), 2) for name in shares]
            lines.append([name_condition(key) if k == 0 else "", name_exit(k, count), *fill_cells(rows, key, picks)])
    return table(head, lines)


def _is_measured(rows: Rows, name: str) -> bool:
    """Whether any run has it: earlier ones had no oracle."""
    return any(name in found["faithfulness"] for runs in rows.values() for found in runs.values())


def name_exit(k: int, count: int) -> str:
    return "final" if k == count - 1 else str(k)


def detail_table(rows: Rows) -> list[str]:
    """Every exit: accuracy, calibration, risk-coverage, and every consistency measure beside its nulls."""
    tests = list_tests(rows)
    label = {test: "" if len(tests) == 1 else f", {test}" for test in tests}
    head = ["condition", "exit", "cost", *(f"accuracy{label[test]}, %" for test in tests), "ECE", "Brier", "risk-coverage"]
    measures = ("cc", "cosine", "sim", "iou", "kl", "divergence")
    head += [f"{m} (shuffled / uniform)" for m in measures]
    lines = []
    for key in list_conditions(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["cost"][k], 3)]  # type: ignore[misc]
            picks += [(accuracy(k, test), 1) for test in tests]
            picks += [(_test_field(field, k), 3) for field in ("calibration_error", "brier", "risk_coverage")]
            row = [name_condition(key) if k == 0 else "", name_exit(k, count), *fill_cells(rows, key, picks)]
            lines.append(row + [_with_nulls(rows, key, m, k) if k < count - 1 else "" for m in measures])
    return table(head, lines)


def _test_field(field: str, k: int) -> Pick:
    return lambda found: float(next(iter(found["tests"].values()))[field][k])


def _with_nulls(rows: Rows, key: str, measure: str, k: int) -> str:
    value, null, uniform = (show(over_seeds(rows, key, consistency(measure, f, k)), 2) for f in ("value", "null", "uniform"))
    return f"{value} ({null.split(' ')[0]} / {uniform.split(' ')[0]})"


def routed_table(rows: Rows, test: str) -> list[str]:
    """What thresholds chosen on calibration data do on one set of test data."""
    limits = ["0.0", "0.003", "0.005, certified", "0.01", "0.01, certified"]
    head = ["condition", *(f"drop ≤ {limit}: points over (a), cost" for limit in limits), "wasteful, destructive, %"]
    lines = []
    for key in list_conditions(rows):
        if not any("policies" in found for found in rows[key].values()):
            continue
        row = [name_condition(key)]
        for limit in limits:
            lost = (
                pair(rows, key, PLAIN, lambda found, limit=limit: _routed_accuracy(found, limit, test))
                if PLAIN in rows
                else [0.0]
            )
            cost = over_seeds(rows, key, lambda found, limit=limit: found["policies"][limit][test]["cost"])
            row.append(f"{show(lost, 1)}, {show(cost, 2)}")
        wasted = [over_seeds(rows, key, lambda found, i=i: 100 * found["tests"][test]["overthinking"][i]) for i in WASTED]
        lines.append([*row, f"{show(wasted[0], 1)}, {show(wasted[1], 1)}"])
    return table(head, lines)


def _routed_accuracy(found: Run, limit: str, test: str) -> float:
    """In points; of a plain network, its accuracy."""
    if "policies" not in found:
        return accuracy(-1, test)(found)
    return float(100 * found["policies"][limit][test]["accuracy"])


def collapse_table(rows: Rows) -> list[str]:
    head = ["maps in place of exit 0's", "cosine", "CC", "CC, shuffled", "skill", "KL"]
    lines = []
    for kind in ("uniform", "centre bias"):
        picks = [_collapse(kind, field) for field in ("cosine", "cc", "cc_null", "skill", "kl")]
        lines.append([kind, *(show(over_seeds(rows, "egt", pick), 2) for pick in picks)])
    measures = (("cosine", "value"), ("cc", "value"), ("cc", "null"), ("cc", "skill"), ("kl", "value"))
    lines.append(["exit 0's own (EGT)", *(show(over_seeds(rows, "egt", consistency(m, f, 0)), 2) for m, f in measures)])
    return table(head, lines)


def _collapse(kind: str, field: str) -> Pick:
    return lambda found: float(found["collapse"][kind][field])
