"""Promises on correlated groups of 1 to 50 samples, named and not: certificates, and the drift watch's false alarms."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.guarantees.traces import run_in_parallel
from benchmarks.guarantees.violations import SETS, list_risks, split_halves, summarise
from exitlens.functional.groups import shuffle_groups, split_groups, weigh_samples
from exitlens.functional.risk import Risk, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.thresholds.certification import PATH_SHARE, choose_tests, run_fixed_sequence_test
from exitlens.functional.thresholds.path import find_candidates, order_path
from exitlens.functional.thresholds.search import quantise

LIMITS, DELTAS = (0.02, 0.05, 0.1), (0.05, 0.1, 0.2)
POPULATION, DRAWN, LARGEST = 4000, 300, 50  # groups
WATCHED = 150  # groups that calibrate, and as many that are watched
KINDS = ("size says nothing", "large groups lose more", "copies of one sample")
MODES = {  # how groups are named, and the sets of risks that are certified so
    "named": ("accuracy drop", "all three"),
    "named, all the same": ("accuracy drop",),
    "not named": ("accuracy drop", "all three"),
}
EQUAL = "named, all the same"


@lru_cache(maxsize=3)
def make_groups(kind: int) -> xl.Trace:
    """Groups that stand for a distribution: of some, the early exits are wrong about most samples, and sure.

    Kind 0: whether they are says nothing about the size. Kind 1: the more samples, the likelier. Kind 2: all samples of a
    group are the same.
    """
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(200 + kind)
    sizes = torch.randint(1, LARGEST + 1, (POPULATION,), generator=rng)
    groups = torch.arange(POPULATION).repeat_interleave(sizes)

    def draw(*shape: int) -> Tensor:  # one for each sample, or one that a group's samples share
        return torch.rand(POPULATION, *shape, generator=rng)[groups]

    def draw_samples(*shape: int) -> Tensor:
        return draw(*shape) if kind == 2 else torch.rand(len(groups), *shape, generator=rng)

    share = 2 * sizes / LARGEST if kind == 1 else torch.ones(POPULATION)
    blind = draw() < 0.05 * share[groups]
    sure = 0.6 * draw(3) + 0.4 * draw_samples(3)
    sure[blind] = 1 - 0.3 * (1 - sure[blind])
    sure[:, 2] = 1
    final_wrong = draw_samples() < 0.1
    slips = draw_samples(3) < (1 - sure) * 0.4
    wrong = torch.where(slips, draw_samples(3) < 0.6, final_wrong[:, None])
    missed = blind[:, None] & (draw_samples(3) < torch.tensor([0.8, 0.4, 0.0]))
    wrong = (wrong | missed).scatter(1, torch.full((len(groups), 1), 2), final_wrong[:, None])
    logits = torch.zeros(len(groups), 3, 4).scatter(2, wrong.long()[..., None], (2 + 6 * sure)[..., None])
    spread = draw(3) * (1 - sure) + 0.5 * missed
    divergence = (spread * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)
    labels = torch.zeros(len(groups), dtype=torch.long)
    return xl.Trace(logits, labels, divergence, torch.tensor([0.2, 0.5, 1.0]), groups=groups)


def draw_groups(trace: xl.Trace, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the samples of groups drawn with replacement, and which draw each belongs to."""
    assert trace.groups is not None
    sizes = torch.bincount(trace.groups)
    starts, chosen = sizes.cumsum(0) - sizes, torch.randint(len(sizes), (count,), generator=rng)
    drawn = torch.arange(count).repeat_interleave(sizes[chosen])
    within = torch.arange(len(drawn)) - (sizes[chosen].cumsum(0) - sizes[chosen])[drawn]
    return starts[chosen][drawn] + within, drawn


def count_one_draw(seed: int) -> dict[str, list[list[float]]]:
    """Rows as in :mod:`~benchmarks.guarantees.violations`, by population, how groups are named, and set of risks."""
    kind = seed % 3
    trace = make_groups(kind)
    rows, drawn = draw_groups(trace, DRAWN, torch.Generator().manual_seed(seed))
    ranks, found = shuffle_groups(drawn, seed), {}
    for mode, labels in MODES.items():
        if mode == "not named":
            first, second = split_halves(torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)))
        else:
            first, second = split_groups(ranks, PATH_SHARE)
        for label in labels:
            found[f"{KINDS[kind]}, {mode}, {label}"] = judge(trace, rows, ranks, (first, second), mode, label)
    return found


def judge(
    trace: xl.Trace, rows: Tensor, ranks: Tensor, parts: tuple[Tensor, Tensor], mode: str, label: str
) -> list[list[float]]:
    """Rows of limit, delta, whether a risk of the whole population is above its limit, and the cost there."""
    scores, (first, second) = score_groups(trace), parts
    levels = quantise(scores[rows[first]])

    def list_named(limit: float) -> list[Risk]:
        risks = [risk.at(rows) for risk in list_risks(trace, SETS[label], limit)]
        equal = mode == EQUAL
        return risks if mode == "not named" else [risk.name_groups(ranks, first, equal=equal) for risk in risks]

    pool = find_candidates(levels.index, [risk.at(first) for risk in list_named(LIMITS[1])], trace.cost)
    applied, result = levels.apply(scores[rows[second]]), []
    for limit in LIMITS:
        risks = list_named(limit)
        path = order_path(pool, [limit] * len(risks))
        for delta in DELTAS:
            tests = choose_tests(levels.index, [risk.at(first) for risk in risks], path, len(second), delta)
            cuts = run_fixed_sequence_test(applied, [risk.at(second) for risk in risks], path, tests, delta).cuts
            exits = find_first_firing(scores, levels.thresholds(cuts) if cuts else (math.inf,) * 2)
            broken = any(risk > limit + 1e-9 for risk in find_true_risks(trace, label, exits, mode))
            result.append([limit, delta, float(broken), trace.cost[exits].double().mean().item()])
    return result


_KNOWN: dict[tuple[int, str], Tensor] = {}  # by id of traces, which live as long as the process


def score_groups(trace: xl.Trace) -> Tensor:
    if (id(trace), "scores") not in _KNOWN:
        _KNOWN[id(trace), "scores"] = score_early_exits(trace, xl.Policy.never(3))
    return _KNOWN[id(trace), "scores"]


def find_true_risks(trace: xl.Trace, label: str, exits: Tensor, mode: str) -> list[float]:
    """Means over all samples of the population, or over its groups where these count the same."""
    assert trace.groups is not None
    if (id(trace), mode) not in _KNOWN:
        weights = weigh_samples(trace.groups, None if mode == EQUAL else LARGEST)
        _KNOWN[id(trace), mode] = weights / len(weights)
    weights = _KNOWN[id(trace), mode]
    return [float(risk.losses(exits).double() @ weights) for risk in list_risks(trace, SETS[label], 0.0)]


def count_on_groups(quick: bool) -> dict[str, Any]:
    count = 6 if quick else 1000
    outcomes = run_in_parallel(count_one_draw, range(count))
    return {"draws": count, "groups": DRAWN, "sets": summarise(outcomes)}


def watch_groups(named: bool, seed: int) -> bool:
    """Whether the monitor warns within 150 new groups of an unchanged population."""
    trace, rng = make_groups(seed % 3), torch.Generator().manual_seed(seed)
    rows, drawn = draw_groups(trace, WATCHED, rng)
    assert trace.labels is not None
    known = xl.Trace(
        trace.logits[rows], trace.labels[rows], trace.divergence[rows], trace.cost, groups=drawn if named else None
    )
    policy = xl.calibrate(known, max_accuracy_drop=0.1, temperature_scaling=False, seed=seed)
    rows, drawn = draw_groups(trace, WATCHED, rng)
    p = trace.logits[rows].softmax(2)
    exits = xl.route(
        replace(trace, **{n: getattr(trace, n)[rows] for n in ("logits", "labels", "divergence", "groups")}), policy
    )
    pred = xl.Prediction(p[:, 0].argmax(1), exits, select_exits(p.amax(2), exits), p[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.DriftWarning)
        return xl.Monitor(policy, seed=seed).update(pred, drawn if named else None).alarm


def watch_on_groups(quick: bool) -> dict[str, Any]:
    count = 6 if quick else 200
    found = {}
    for name, named in (("named", True), ("not named", False)):
        alarms = run_in_parallel(partial(watch_groups, named), range(count))
        found[name] = {"alarms": sum(alarms) / count}
    return {"runs": count, "groups": WATCHED} | found
