"""calibrate: from a trace to a frozen policy. It never touches a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, InputError, require
from exitlens.functional.certification import (
    Certificate,
    Risk,
    choose_tests,
    estimate_samples_needed,
    find_candidates,
    order_path,
    walk,
)
from exitlens.functional.drift import summarize_reference
from exitlens.functional.gating import SHARES, estimate_trace, fit_gate, limit_gate, mask_untrusted
from exitlens.functional.limits import check_limits
from exitlens.functional.risk import accuracy_drop, disagreement, distinct, overlaps, select_exits, sketch
from exitlens.functional.routing import find_first_firing, route, score_early_exits, score_final_exit
from exitlens.functional.scores import fit_temperature
from exitlens.functional.search import Cuts, Levels, Point, evaluate_cuts, frontier, quantise, refine
from exitlens.types import Gate, Policy, Trace

PATH_SHARE = 0.4  # of the samples, to find the path; the others test it (docs/guarantees.md)
FEWEST = 10  # samples for a certificate; what so few can certify is nothing, and the policy says how many it takes


def calibrate(
    trace: Trace,
    *,
    max_accuracy_drop: float | None = None,
    max_class_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    max_divergence: float | None = None,
    max_cost: float | None = None,
    delta: float | None = None,
    score: str = "max_probability",
    temperature_scaling: bool = True,
    temperatures: Policy | None = None,
    gate: bool = False,
    seed: int = 0,
) -> Policy:
    """Chooses per-exit thresholds on a trace.

    With limits on risks it returns the cheapest policy found that keeps all of them; with ``max_cost`` alone, the policy
    of least risk (accuracy drop, or disagreement without labels) whose mean cost is at most that; with both, the
    cheapest that keeps all, or an error if there is none.

    Without ``delta`` (empirical mode) the limits hold on these samples. With it (**certified mode**) they hold for the
    data's distribution: with probability at least ``1 - delta`` over the draw of these samples, every risk is at most its
    limit, for any network, distribution and number of samples (Pareto Testing, arXiv 2210.07913; docs/guarantees.md). What
    was promised, and by which tests, stands in ``policy.chosen_by``; ``policy.certificate()`` says it in two sentences.
    Where nothing can be certified the early exits never fire, and the policy says why and how many samples it would take.

    Args:
        trace: independent samples of the data to come, not used for training, and not to be used for testing.
        max_accuracy_drop: limit in [0, 1] on final accuracy minus routed accuracy; needs labels.
        max_class_accuracy_drop: the same for the samples of every class; needs labels.
        max_disagreement: limit in [0, 1] on the share of answers that differ from the final exit's.
        max_divergence: limit in [0, 1] on the mean divergence of the attention map at the exit taken.
        max_cost: limit on the mean cost, as a fraction of the plain backbone's, on these samples.
        delta: in (0, 1): how likely the promise may be wrong; at least one limit on a risk is needed.
        score: ``max_probability``, ``entropy`` or ``margin``.
        temperature_scaling: fit one temperature an exit by NLL first (needs labels; skipped without them). In certified mode
            it is fitted on the part of the samples that finds the path, which does not test it.
        temperatures: take those of this policy, fitted on other data, instead.
        gate: also fit a :class:`~exitlens.types.Gate`, which lets exits fire only where their map is estimated to be near
            the final one, and keep it if the policy gets cheaper by it; needs ``max_divergence``. Fitted on the path's part.
        seed: of how the samples are shared out between path and test.

    Raises:
        InputError: no limit, a limit or ``delta`` out of range, or labels missing for a limit that needs them.
        CalibrationError: if no policy keeps every limit (empirical mode) or ``max_cost``; for fewer than 10 samples in
            certified mode; if ``temperatures`` were fitted on samples of this trace. PolicyError: if they are of another
            network.
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    given = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_class_accuracy_drop": max_class_accuracy_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    limits = check_limits(given, max_cost=max_cost, delta=delta, score=score, gate=gate)
    require(temperature_scaling, bool, "temperature_scaling")
    if delta is not None and len(trace) < FEWEST:
        raise CalibrationError(
            f"trace: {len(trace)} samples can certify nothing: collect {FEWEST} or more, better some hundred"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed: expected an integer of 0 or more, below 2**63, got {seed!r}")
    rows = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    first, second = (rows, rows[:0]) if delta is None else rows.split([cut := _cut(len(trace)), len(trace) - cut])
    risks = [r for name, limit in limits.items() for r in _risks(trace, name, limit, first if delta is None else second)]
    scaling, fitted_on = _temperatures(trace, first, temperature_scaling, temperatures)
    unset = Policy.never(trace.num_exits, score=score, temperatures=scaling, network=trace.network)
    chosen = _gate(trace, unset, first, risks) if gate else None
    scores = score_early_exits(trace, replace(unset, gate=chosen))
    record = {
        "limits": {**limits, **({} if max_cost is None else {"max_cost": max_cost})},
        "samples": len(trace),
        "data": trace.fingerprint(),
        "distinct": distinct(trace),
        "fitted_on": fitted_on,
    }
    if max_class_accuracy_drop is not None:
        record["classes"] = [sum(risk.rows is not None for risk in risks), trace.logits.shape[2]]  # tested, of so many
    if delta is None:
        thresholds, found = _empirical(trace, scores, risks, max_cost), dict[str, Any]()
    else:
        thresholds, found = _certified(scores, risks, trace.cost, first, second, delta)
    mode = {"mode": "empirical" if delta is None else "certified"}
    policy = _record(
        trace, unset, replace(unset, thresholds=thresholds, gate=chosen), mode | record | found | {"seed": seed}
    )
    cost = policy.chosen_by["cost"]
    if delta is not None and max_cost is not None and cost > max_cost + 1e-6:
        raise CalibrationError(
            f"max_cost: the cheapest policy that can be certified costs {cost:.3g}, more than {max_cost:.3g}: raise a limit "
            f"or delta, or collect more samples ({len(trace)} now)"
        )
    return policy


def _record(trace: Trace, unset: Policy, policy: Policy, record: dict[str, Any]) -> Policy:
    """The policy with its record: cost, what the drift watch compares with, and the rule that all of it is about."""
    exits = route(trace, policy)
    said = torch.cat(
        [score_early_exits(trace, unset), score_final_exit(trace, unset)], 1
    )  # as predictions report it, gate or not
    record |= {
        "reference": summarize_reference(exits, select_exits(said, exits), trace.num_exits),
        "cost": trace.cost[exits].double().mean().item(),
        "rule": policy.rule(),
    }
    return replace(policy, chosen_by=record)


def _gate(trace: Trace, unset: Policy, rows: Tensor, risks: Sequence[Risk]) -> Gate | None:
    """The gate under which these samples' cheapest policy is cheapest; ``None`` if that trusts everything."""
    if trace.num_exits < 2:
        return None
    fitted = fit_gate(trace, rows, unset.temperatures)
    plain, estimates = score_early_exits(trace, unset)[rows], estimate_trace(trace, unset.temperatures, fitted)[rows]
    theirs, best, chosen = [risk.at(rows) for risk in risks], math.inf, None
    for share in SHARES:
        gate = limit_gate(fitted, estimates, share)
        columns = [mask_untrusted(plain[:, k], estimates[:, k], limit) for k, limit in enumerate(gate.limits)]
        cost = _cheapest(quantise(torch.stack(columns, 1)), theirs, trace.cost, None).cost
        if cost < best - 1e-9:
            best, chosen = cost, gate if share < 1 else None
    return chosen


def _risks(trace: Trace, name: str, limit: float, rows: Tensor) -> list[Risk]:
    """The risks that one limit is about; of the classes those that are among the ``rows`` that decide."""
    if name == "max_accuracy_drop":
        return [Risk(name, accuracy_drop(trace), limit, "ternary")]
    if name == "max_disagreement":
        return [Risk(name, disagreement(trace), limit, "binary")]
    if name == "max_divergence":
        return [Risk(name, trace.divergence.clamp(0, 1), limit, "unit")]
    labels, drop = trace.require_labels(name), accuracy_drop(trace)
    classes = labels[rows].unique().tolist()
    return [Risk(f"{name}, class {c}", drop, limit, "ternary", labels == c) for c in classes]


def _cut(count: int) -> int:
    return max(1, round(PATH_SHARE * count))


def _certified(
    scores: Tensor, risks: Sequence[Risk], cost: Tensor, first: Tensor, second: Tensor, delta: float
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Thresholds and the record of how they were certified."""
    levels = quantise(scores[first])
    theirs, ours = [risk.at(first) for risk in risks], [risk.at(second) for risk in risks]
    path = order_path(find_candidates(levels.index, theirs, cost), [risk.limit for risk in risks])
    tests = choose_tests(levels.index, theirs, path, len(second), delta)
    found = walk(levels.apply(scores[second]), ours, path, tests, delta)
    record = {
        "delta": delta,
        "path_samples": len(first),
        "path": found.path,
        "walked": found.walked,
        "tested": [asdict(one) | {"mean": None if math.isnan(one.mean) else one.mean} for one in found.tested],
    }
    if found.cuts is not None:
        return levels.thresholds(found.cuts), record
    needed = estimate_samples_needed(theirs, path, delta)
    total = None if needed is None else max(FEWEST, math.ceil(needed / (1 - PATH_SHARE)))
    reason = _reason(found, len(first) + len(second), total) if scores.shape[1] else "the network has no early exits"
    record |= {"reason": reason, "samples_needed": total}
    return (math.inf,) * scores.shape[1], record


def _reason(found: Certificate, samples: int, needed: int | None) -> str:
    if not found.tested:
        return f"no early answer kept every limit on the {samples} samples: train longer, or raise a limit"
    worst = max(found.tested, key=lambda one: one.p_value)
    seen = "none of its samples was there" if worst.samples == 0 else f"seen {worst.mean:.4g} in {worst.samples} samples"
    what = f"{worst.name} could not be shown to be at most {worst.limit:g} ({seen}, p-value {worst.p_value:.2g})"
    if worst.limit == 0:
        return f"{what}: that nothing at all is lost can never be shown from samples: raise the limit"
    if needed is None:
        return f"{what}: on the samples that chose the policy it was above the limit, so more samples would not help"
    if needed <= samples:
        return f"{what}: about {needed} samples should do on average, so this draw was unlucky, or the limit is at the edge"
    return f"{what}: about {needed} samples would be needed"


def _empirical(trace: Trace, scores: Tensor, risks: Sequence[Risk], max_cost: float | None) -> tuple[float, ...]:
    levels = quantise(scores)
    if risks:
        return levels.thresholds(_cheapest(levels, risks, trace.cost, max_cost).cuts)
    return levels.thresholds(_safest(levels, trace, float(max_cost or 0)).cuts)


def _temperatures(
    trace: Trace, rows: Tensor, scale: bool, given: Policy | None
) -> tuple[tuple[float, ...], list[dict[str, Any]]]:
    """One an exit, and fingerprint and sketch of the samples that they were fitted on."""
    if given is not None:
        require(given, Policy, "temperatures", "a policy whose temperatures were fitted on other data")
        given.check(trace.num_exits, trace.network)
        before = [dict(record) for record in given.chosen_by.get("fitted_on", ())]
        if overlaps(trace, before):
            raise CalibrationError(
                "temperatures: they were fitted on samples of this trace: calibrate on samples that nothing was fitted on, "
                "or leave temperatures out (they are then fitted on a part that is not tested)"
            )
        return given.temperatures, before
    if not scale or trace.labels is None:
        return (1.0,) * trace.num_exits, []
    logits, labels = trace.logits[rows], trace.labels[rows]
    fitted = tuple(fit_temperature(logits[:, k], labels) for k in range(trace.num_exits))
    return fitted, [{"data": trace.fingerprint(), "sketch": sketch(trace)}]


def _cheapest(levels: Levels, risks: Sequence[Risk], cost: Tensor, max_cost: float | None) -> Point:
    """The cheapest policy that keeps every limit: frontiers of each risk and of their sum, then refined."""

    def allowed(cuts: Cuts) -> bool:
        exits = find_first_firing(levels.index, cuts)
        return all(risk.losses(exits).double().mean().item() <= risk.limit + 1e-12 for risk in risks)

    columns = [risk.column() for risk in risks if risk.rows is None]
    if len(risks) > 1 or not columns:
        columns.append(torch.stack([risk.column() / max(risk.limit, 1e-3) for risk in risks]).sum(0))
    points = [point for risk in columns for point in frontier(levels.index, risk, cost) if allowed(point.cuts)]
    points.append(evaluate_cuts(levels.index, columns[0], cost, (math.inf,) * (len(cost) - 1)))
    best = refine(levels, columns[0], cost, min(points, key=lambda p: p.cost), allowed)
    if max_cost is not None and best.cost > max_cost:
        limits = {risk.name: risk.limit for risk in risks}
        raise CalibrationError(
            f"max_cost: no policy found costs {max_cost:.3g} or less and keeps {limits}; the cheapest that keeps them "
            f"costs {best.cost:.3g}: raise one of the limits"
        )
    return best


def _safest(levels: Levels, trace: Trace, max_cost: float) -> Point:
    """The policy of least risk within the cost limit; labels decide what risk is."""
    risk = accuracy_drop(trace) if trace.labels is not None else disagreement(trace)
    room = max_cost + 1e-6  # costs are float32
    if room < trace.cost[0]:
        raise CalibrationError(
            f"max_cost: got {max_cost:.3g}, but the first exit alone costs {trace.cost[0].item():.3g} of the backbone"
        )
    points = frontier(levels.index, risk, trace.cost)
    points.append(evaluate_cuts(levels.index, risk, trace.cost, (0.0,) * (trace.num_exits - 1)))
    return min((p for p in points if p.cost <= room), key=lambda p: p.risk)
