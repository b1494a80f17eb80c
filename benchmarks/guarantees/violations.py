"""How often a certified policy breaks its promise: over splits of real traces, and over draws whose risks are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks.guarantees.traces import CALIBRATION, load_trace, recall_trace, run_in_parallel
from exitlens.functional.risk import Risk, accuracy_drop, disagreement, false_negative_drop
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.scores import fit_temperature
from exitlens.functional.thresholds.certification import PATH_SHARE, choose_tests, run_fixed_sequence_test
from exitlens.functional.thresholds.path import find_candidates, order_path
from exitlens.functional.thresholds.search import quantise

DELTAS, LIMITS = (0.05, 0.1, 0.2), (0.005, 0.01, 0.02, 0.05)
SETS = {
    "accuracy drop": ("accuracy",),
    "disagreement": ("disagreement",),
    "divergence": ("divergence",),
    "all three": ("accuracy", "disagreement", "divergence"),
}
LABEL_SETS = {  # of several labels a sample
    "accuracy drop": ("accuracy",),
    "missed labels": ("missed",),
    "both": ("accuracy", "missed"),
}
KINDS = {"accuracy": "ternary", "disagreement": "binary", "divergence": "unit", "missed": "signed"}


_VALUES: dict[int, dict[str, Tensor]] = {}  # by id of traces, which live as long as the process


def list_risks(trace: xl.Trace, names: Sequence[str], limit: float) -> list[Risk]:
    if id(trace) not in _VALUES:
        values = {"accuracy": accuracy_drop(trace), "disagreement": disagreement(trace), "divergence": trace.divergence}
        if trace.task == "multilabel":
            values["missed"] = false_negative_drop(trace)
        _VALUES[id(trace)] = values
    return [Risk(name, _VALUES[id(trace)][name], limit, KINDS[name]) for name in names]  # type: ignore[arg-type]


def scale_scores(trace: xl.Trace, fit: Tensor) -> Tensor:
    """Scores under temperatures fitted on these rows."""
    assert trace.labels is not None
    temperatures = tuple(fit_temperature(trace.logits[fit, k], trace.labels[fit]) for k in range(trace.num_exits))
    return score_early_exits(trace, xl.Policy.never(trace.num_exits, temperatures=temperatures))


def certify(
    scores: Tensor, trace: xl.Trace, first: Tensor, second: Tensor, names: Sequence[str], further: int = 0
) -> dict[tuple[float, float], tuple[float, ...]]:
    """Thresholds by limit and delta, as calibrate finds them; ``further``: so many steps beyond what the walk allows."""
    levels, found = quantise(scores[first]), {}
    mine = [r.at(first) for r in list_risks(trace, names, LIMITS[1])]
    pool, applied = find_candidates(levels.index, mine, trace.cost), levels.apply(scores[second])
    for limit in LIMITS:
        theirs = [replace(r, limit=limit) for r in mine]
        ours = [r.at(second) for r in list_risks(trace, names, limit)]
        path = order_path(pool, [limit] * len(names))
        for delta in DELTAS:
            tests = choose_tests(levels.index, theirs, path, len(second), delta)
            cuts = run_fixed_sequence_test(applied, ours, path, tests, delta).cuts
            if further:
                at = [one.cuts for one in path].index(cuts) if cuts is not None else -1
                cuts = path[min(at + further, len(path) - 1)].cuts if path else None
            never = (math.inf,) * scores.shape[1]
            found[limit, delta] = never if cuts is None else levels.thresholds(cuts)
    return found


def split_halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    cut = max(1, round(PATH_SHARE * len(rows)))
    return rows[:cut], rows[cut:]


def count_one_split(name: str, seed: int) -> dict[str, list[list[float]]]:
    """For each set of risks, limit and delta: whether a risk is above its limit on the test samples, and the cost there."""
    trace = recall_trace(name)
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = order[:CALIBRATION], order[CALIBRATION:]
    first, second = split_halves(known)
    scores = scale_scores(trace, first)
    return {label: judge(scores, trace, first, second, test, names) for label, names in SETS.items()}


def judge(
    scores: Tensor,
    trace: xl.Trace,
    first: Tensor,
    second: Tensor,
    test: Tensor,
    names: Sequence[str],
    further: int = 0,
) -> list[list[float]]:
    """Rows of limit, delta, whether a risk is above its limit on the test samples, and the cost there."""
    rows = []
    for (limit, delta), thresholds in certify(scores, trace, first, second, names, further).items():
        exits = find_first_firing(scores[test], thresholds)
        means = [r.at(test).losses(exits).double().mean().item() for r in list_risks(trace, names, limit)]
        rows.append(
            [limit, delta, float(any(mean > limit + 1e-9 for mean in means)), trace.cost[exits].double().mean().item()]
        )
    return rows


def summarise(outcomes: Sequence[dict[str, list[list[float]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Share of violations and mean cost, by set of risks, limit and delta."""
    found = {}
    for label in dict.fromkeys(label for one in outcomes for label in one):
        table = np.array([one[label] for one in outcomes if label in one])  # (S, combinations, 4)
        found[label] = {f"limit {rows[0, 0]}, delta {rows[0, 1]}": _summarise(rows) for rows in table.transpose(1, 0, 2)}
    return found


def _summarise(rows: np.ndarray) -> dict[str, float]:
    limits, deltas, broken, costs = rows.T
    return {
        "limit": float(limits[0]),
        "delta": float(deltas[0]),
        "violations": float(broken.mean()),
        "cost": round(float(costs.mean()), 4),
        "never": float((costs > 0.999).mean()),
        "draws": len(rows),
    }


def count_on_splits(name: str, quick: bool) -> dict[str, Any]:
    count = 8 if quick else 1000
    load_trace(name)  # trained and collected once, before the processes start
    return {"splits": count, "calibration": CALIBRATION, "samples": len(load_trace(name))} | {
        "sets": summarise(run_in_parallel(partial(count_one_split, name), range(count)))
    }


def count_one_draw(broken: bool, seed: int) -> dict[str, list[list[float]]]:
    """As :func:`count_one_split`, on 1,000 samples drawn with replacement from one of three populations, whose risk counts."""
    kind = seed % 3
    trace = recall_trace(f"synthetic-{kind}")
    rows = torch.randint(len(trace), (1000,), generator=torch.Generator().manual_seed(seed))
    first, second = split_halves(rows)
    scores, everyone = score_early_exits(trace, xl.Policy.never(3)), torch.arange(len(trace))
    return {
        f"population {kind}, {label}": judge(scores, trace, first, second, everyone, names, further=int(broken))
        for label, names in SETS.items()
    }


def count_one_labels_draw(broken: bool, seed: int) -> dict[str, list[list[float]]]:
    """As :func:`count_one_draw`, of samples with several labels each, with temperatures fitted on the first part."""
    kind = seed % 3
    trace = recall_trace(f"labels-{kind}")
    rows = torch.randint(len(trace), (1000,), generator=torch.Generator().manual_seed(seed))
    first, second = split_halves(rows)
    assert trace.labels is not None
    fitted = tuple(fit_temperature(trace.logits[first, k], trace.labels[first]) for k in range(trace.num_exits))
    scores = score_early_exits(trace, xl.Policy.never(3, score="decided", temperatures=fitted))
    everyone = torch.arange(len(trace))
    return {
        f"population {kind}, {label}": judge(scores, trace, first, second, everyone, names, further=int(broken))
        for label, names in LABEL_SETS.items()
    }


def count_on_labels(quick: bool) -> dict[str, Any]:
    count, further = (6, 6) if quick else (1000, 150)
    sound = summarise(run_in_parallel(partial(count_one_labels_draw, False), range(count)))
    broken = summarise(run_in_parallel(partial(count_one_labels_draw, True), range(further)))
    return {"draws": count, "samples": 1000, "sets": sound, "broken": {"draws": further, "sets": broken}}


def count_on_synthetic(quick: bool) -> dict[str, Any]:
    count = 6 if quick else 2000
    sound = summarise(run_in_parallel(partial(count_one_draw, False), range(count)))
    broken = summarise(run_in_parallel(partial(count_one_draw, True), range(6 if quick else 300)))
    return {"draws": count, "samples": 1000, "sets": sound, "broken": {"draws": 300, "sets": broken}}
