"""sweep, measure_anytime, measure_budgeted_batch: what a network offers at every cost, with confidence bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.groups import shuffle_groups, split_groups
from exitlens.functional.risk import accuracy_drop, disagreement, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.scores import fit_temperatures
from exitlens.functional.search import Cuts, find_frontier, quantise
from exitlens.types import Policy, Trace
from exitlens.types.policies import ConfidenceInterval, CostAccuracy, SweepPoint
from exitlens.types.tasks import choose_score

PRICES = (0.0, 0.3, 1.0, 3.0)  # how many errors a divergence of 1 weighs


def sweep(trace: Trace, *, score: str | None = None, level: float = 0.95, most: int = 60, seed: int = 0) -> list[SweepPoint]:
    """Return the frontier of accuracy, divergence and cost, cheapest first: what to ask of :func:`exitlens.calibrate`.

    Policies are found on one half of the samples and measured on the other, so no point flatters itself. The bands hold for
    all points of one measure at once (Gaussian multiplier bootstrap of the largest deviation, arXiv 1212.6906). Groups that
    the trace names stay whole, and are what the bands count.

    Args:
        trace: 10 samples (or groups) or more; without labels, agreement with the final exit takes the place of accuracy.
        score: ``max_probability`` (the default), ``entropy`` or ``margin``; with several labels per sample ``decided``.
        level: confidence level of the bands, in (0, 1).
        most: maximum number of points.
        seed: decides how the samples are split in halves.

    Examples:
        >>> points = xl.sweep(trace)
        >>> points[0].cost.value <= points[-1].cost.value  # cheapest first
        True
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    score = choose_score(score, trace.task)
    if trace.num_groups < 10:
        what = "samples" if trace.groups is None else "groups"
        raise InputError(f"trace: expected 10 {what} or more, got {trace.num_groups}: half of them find the policies")
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise InputError(f"level: expected a number between 0 and 1, got {level!r}")
    _check_count(most, "most")
    if trace.groups is not None and trace.num_groups < len(trace):
        first, second = split_groups(shuffle_groups(trace.groups, seed), 0.5)
    else:
        order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
        first, second = order.tensor_split([len(order) // 2])
    temperatures = () if trace.labels is None else fit_temperatures(trace.logits, trace.labels, first)
    base = Policy.never(trace.num_exits, score=score, temperatures=temperatures, network=trace.network)
    levels = quantise(score_early_exits(trace, base)[first])
    risk = accuracy_drop(trace) if trace.labels is not None else disagreement(trace)
    vectors: dict[Cuts, None] = {}
    for mixed in [*(risk + price * trace.divergence for price in PRICES), trace.divergence]:
        vectors |= {p.cuts: None for p in find_frontier(levels.index, mixed[first], trace.cost)}
    cuts = _keep_undominated(list(vectors), levels.index, [risk[first], trace.divergence[first]], trace.cost)
    if len(cuts) > most:
        cuts = [cuts[i] for i in torch.linspace(0, len(cuts) - 1, most).round().long().unique().tolist()]
    policies = [replace(base, thresholds=levels.thresholds(c)) for c in cuts]
    exits = [find_first_firing(score_early_exits(trace, policy), policy.thresholds)[second] for policy in policies]
    measures = {"cost": trace.cost[None].expand(len(second), -1), "agreement": 1 - disagreement(trace)[second]}
    measures["divergence"] = trace.divergence[second]
    if trace.labels is not None:
        measures["accuracy"] = trace.correct.float()[second]
    groups = None if trace.groups is None or trace.num_groups == len(trace) else trace.groups[second]
    bands = {
        name: _find_bands(torch.stack([select_exits(values, e) for e in exits]), level, groups)
        for name, values in measures.items()
    }
    return [SweepPoint(policy, **{name: points[i] for name, points in bands.items()}) for i, policy in enumerate(policies)]


def _check_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}: expected an integer of 1 or more, got {value!r}")


def _keep_undominated(pool: Sequence[Cuts], index: Tensor, risks: Sequence[Tensor], cost: Tensor) -> list[Cuts]:
    """Return the cuts that no others beat in cost and in every risk, cheapest first."""
    routed = [find_first_firing(index, cuts) for cuts in pool]
    columns = [cost[None].expand(len(index), -1), *risks]
    rows = [[select_exits(values, exits).double().mean() for values in columns] for exits in routed]
    table = torch.tensor(rows, dtype=torch.float64)
    beaten = (table[:, None] >= table[None]).all(2) & (table[:, None] > table[None]).any(2)
    kept = (~beaten.any(1)).nonzero().squeeze(1)
    return [pool[i] for i in kept[table[kept, 0].argsort()].tolist()]


def _find_bands(values: Tensor, level: float, groups: Tensor | None = None, draws: int = 500) -> list[ConfidenceInterval]:
    """Return simultaneous bands for the means of all rows of ``values`` ``(P,n)``; ``groups`` is ``(n,)``."""
    x = values.double()
    means, count = x.mean(1), len(x[0])
    residuals, errors = x - means[:, None], x.std(1, correction=0) / count**0.5
    if groups is not None:
        ids, numbers = groups.unique(return_inverse=True)
        residuals = torch.zeros(len(x), len(ids), dtype=torch.float64).index_add(1, numbers, residuals)
        errors = residuals.norm(dim=1) / count
    noise = torch.randn(residuals.shape[1], draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deviations = (residuals @ noise / count).abs() / errors.clamp_min(1e-12)[:, None]
    width = deviations.amax(0).quantile(level) * errors
    return [ConfidenceInterval(m, m - w, m + w) for m, w in zip(means.tolist(), width.tolist(), strict=True)]


def measure_anytime(trace: Trace) -> list[CostAccuracy]:
    """Return the accuracy of each exit if it answers every sample, on a labelled trace.

    This is the anytime curve of MSDNet (arXiv 1703.09844, section 5.2).

    Examples:
        >>> [round(point.cost, 2) for point in xl.measure_anytime(trace)] == [round(cost, 2) for cost in trace.cost.tolist()]
        True
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    trace.require_labels("measure_anytime")
    correct = trace.correct.double().mean(0)
    return [CostAccuracy(cost, right) for cost, right in zip(trace.cost.tolist(), correct.tolist(), strict=True)]


def measure_budgeted_batch(
    validation: Trace, test: Trace, *, score: str | None = None, points: int = 40
) -> list[CostAccuracy]:
    """Return accuracy at mean costs under MSDNet's protocol (arXiv 1703.09844, section 5.2), for comparison with papers.

    Exit k answers a share proportional to ``q^k`` of the samples, the surest of those that reach it; the thresholds
    that do so on ``validation`` are applied to ``test``. :func:`exitlens.calibrate` finds better thresholds, exit by exit.

    Args:
        validation: chooses thresholds; needs no labels. test: labelled.
        score: ``max_probability`` (MSDNet's, the default), ``entropy`` or ``margin``; with several labels per sample
            ``decided``; without temperatures.
        points: number of values of ``q``, from almost all samples at the first exit to almost all at the last.

    Examples:
        >>> half = torch.arange(32)
        >>> xl.measure_budgeted_batch(trace.select(half), trace.select(half + 32), points=2)
        [CostAccuracy(cost=..., accuracy=...), ...]
    """
    for name, trace in (("validation", validation), ("test", test)):
        require(trace, Trace, name, "see exitlens.collect")
    networks = {validation.network, test.network} - {""}
    if (validation.num_exits, validation.task) != (test.num_exits, test.task) or len(networks) > 1:
        raise InputError("validation, test: expected traces of one network: collect both with it")
    _check_count(points, "points")
    test.require_labels("measure_budgeted_batch")
    policy = Policy.never(test.num_exits, score=choose_score(score, test.task))
    known, scores = score_early_exits(validation, policy), score_early_exits(test, policy)
    correct, curve = test.correct.double(), []
    for q in torch.logspace(-1.5, 1.5, points).tolist():
        shares = torch.tensor([q**k for k in range(test.num_exits)], dtype=torch.float64)
        rest, thresholds = torch.arange(len(known)), []
        for k, share in enumerate((shares / shares.sum()).tolist()[:-1]):
            order = known[rest, k].argsort(descending=True)
            leaving = min(len(rest), round(share * len(known)))
            thresholds.append(known[rest[order[leaving - 1]], k].item() if leaving else math.inf)
            rest = rest[order[leaving:]]
        exits = find_first_firing(scores, thresholds)
        curve.append(CostAccuracy(test.cost[exits].double().mean().item(), select_exits(correct, exits).mean().item()))
    return curve
