"""Tables of docs/results.md over conditions and seeds: from the runs of one data set to Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.promises import (
    Pick,
    Rows,
    accuracy,
    area,
    consistency,
    faithful,
    interval,
    over_seeds,
    paired,
    static_area,
)


def show(values: Sequence[float], digits: int) -> str:
    """Mean and half width of the 95 % interval."""
    middle, half = interval(list(values))
    return f"{middle:.{digits}f}" if math.isinf(half) else f"{middle:.{digits}f} ± {half:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"] + [
        "| " + " | ".join(row) + " |" for row in rows
    ]


def ordered(rows: Rows) -> list[str]:
    return [key for key in CONDITIONS if key in rows]


def name_of(key: str) -> str:
    condition = CONDITIONS[key]
    return f"({condition.letter}) {condition.title}" if condition.letter else condition.title


def cells(rows: Rows, key: str, picks: Sequence[tuple[Pick | None, int]]) -> list[str]:
    found = []
    for pick, digits in picks:
        try:
            values = [] if pick is None else over_seeds(rows, key, pick)
            found.append("" if not values or any(v != v for v in values) else show(values, digits))
        except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError):
            found.append("")  # a plain network has no early exit, and no agreement
    return found


def early(pick: Pick) -> Pick:
    """Only of networks with early exits."""

    def only(found: dict[str, Any]) -> float:
        if len(found["cost"]) < 2:
            raise IndexError
        return pick(found)

    return only


def tests_of(rows: Rows) -> list[str]:
    return list(next(iter(next(iter(rows.values())).values()))["tests"])


def main_table(rows: Rows) -> list[str]:
    tests = tests_of(rows)
    head = ["condition", "seeds"]
    picks: list[tuple[Pick | None, int]] = []
    for test in tests:
        label = "" if len(tests) == 1 else f", {test}"
        head += [f"accuracy exit 0{label}, %", f"final{label}, %"]
        picks += [(early(accuracy(0, test)), 1), (accuracy(-1, test), 1)]
    head += ["skill exit 0", "skill, mean", "KL, mean", "cosine, mean", "area, %", "area, chosen thresholds, %"]
    picks += [(early(consistency("cc", "skill", 0)), 2), (early(consistency("cc", "skill")), 2)]
    picks += [(early(consistency("kl", "value")), 2), (early(consistency("cosine", "value")), 2)]
    picks += [(area, 1), (lambda found: 100 * found["area"], 1)]
    lines = [[name_of(key), str(len(rows[key])), *cells(rows, key, picks)] for key in ordered(rows)]
    if areas := static_area(rows):
        shown = show([100 * one for one in areas.values()], 1)
        lines.append(["(i) the plain and the static networks together", str(len(areas)), *[""] * (len(head) - 4), shown, ""])
    return table(head, lines)


def faithfulness_table(rows: Rows) -> list[str]:
    head = ["condition", "exit", "deletion", "random cells", "insertion", "random cells", "after head randomisation, CC"]
    masks = next(iter(next(iter(rows.values())).values()))["faithfulness"]["energy_in_mask"] is not None
    head += ["energy in the object", "pointing game"] if masks else []
    lines = []
    for key in ordered(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            names = ["deletion_random", "insertion", "insertion_random", "randomised_cc"]
            names += ["energy_in_mask", "pointing_game"] if masks else []
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["faithfulness"]["deletion"][k], 3)]  # type: ignore[misc]
            picks += [(faithful(name, k), 3) for name in names]
            lines.append([name_of(key) if k == 0 else "", exit_name(k, count), *cells(rows, key, picks)])
    return table(head, lines)


def exit_name(k: int, count: int) -> str:
    return "final" if k == count - 1 else str(k)


def detail_table(rows: Rows) -> list[str]:
    """Every exit: accuracy, calibration, risk-coverage, and every consistency measure beside its nulls."""
    tests = tests_of(rows)
    label = {test: "" if len(tests) == 1 else f", {test}" for test in tests}
    head = ["condition", "exit", "cost", *(f"accuracy{label[test]}, %" for test in tests), "ECE", "Brier", "risk-coverage"]
    measures = ("cc", "cosine", "sim", "iou", "kl", "divergence")
    head += [f"{m} (shuffled / uniform)" for m in measures]
    lines = []
    for key in ordered(rows):
        count = len(next(iter(rows[key].values()))["cost"])
        for k in range(count):
            picks: list[tuple[Pick | None, int]] = [(lambda found, k=k: found["cost"][k], 3)]  # type: ignore[misc]
            picks += [(accuracy(k, test), 1) for test in tests]
            picks += [(_test_field(field, k), 3) for field in ("calibration_error", "brier", "risk_coverage")]
            row = [name_of(key) if k == 0 else "", exit_name(k, count), *cells(rows, key, picks)]
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
    for key in ordered(rows):
        if not any("policies" in found for found in rows[key].values()):
            continue
        row = [name_of(key)]
        for limit in limits:
            lost = (
                paired(rows, key, "plain", lambda found, limit=limit: _routed_accuracy(found, limit, test))
                if "plain" in rows
                else [0.0]
            )
            cost = over_seeds(rows, key, lambda found, limit=limit: found["policies"][limit][test]["cost"])
            row.append(f"{show(lost, 1)}, {show(cost, 2)}")
        wasted = [over_seeds(rows, key, lambda found, i=i: 100 * found["tests"][test]["overthinking"][i]) for i in (0, 1)]
        lines.append([*row, f"{show(wasted[0], 1)}, {show(wasted[1], 1)}"])
    return table(head, lines)


def _routed_accuracy(found: dict[str, Any], limit: str, test: str) -> float:
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
