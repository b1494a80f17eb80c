"""calibrate: from a trace to a frozen policy. It never touches a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, InputError, require
from exitlens.functional.frontier import Cuts, Levels, Point, evaluate_cuts, frontier, quantise, refine
from exitlens.functional.risk import accuracy_drop, disagreement
from exitlens.functional.routing import early_scores
from exitlens.functional.scores import fit_temperature
from exitlens.types import SCORES, Policy, Trace

RISKS: Mapping[str, Callable[[Trace], Tensor]] = {
    "max_accuracy_drop": accuracy_drop,
    "max_disagreement": disagreement,
    "max_divergence": lambda trace: trace.divergence,
}


def calibrate(
    trace: Trace,
    *,
    max_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    max_divergence: float | None = None,
    max_cost: float | None = None,
    score: str = "max_probability",
    temperature_scaling: bool = True,
) -> Policy:
    """Chooses per-exit thresholds on a trace (empirical mode: the limits hold on these samples; see ``chosen_by``).

    With limits on risks it returns the cheapest policy found that keeps all of them; with ``max_cost`` alone, the policy
    of least risk (accuracy drop, or disagreement without labels) whose mean cost is at most that; with both, the
    cheapest that keeps all, or an error if there is none.

    Args:
        trace: of data that was not used for training and will not be used for testing.
        max_accuracy_drop: limit in [0, 1] on final accuracy minus routed accuracy; needs labels.
        max_disagreement: limit in [0, 1] on the share of answers that differ from the final exit's.
        max_divergence: limit in [0, 1] on the mean divergence of the attention map at the exit taken.
        max_cost: limit on the mean cost, as a fraction of the plain backbone's.
        score: ``max_probability``, ``entropy`` or ``margin``.
        temperature_scaling: fit one temperature an exit by NLL first (needs labels; skipped without them).

    Raises:
        InputError: no limit, a limit out of [0, 1], or labels missing for a limit that needs them.
        CalibrationError: if no policy keeps every limit.
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    given = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    limits = _checked(given, max_cost, score)
    temperatures = _temperatures(trace, temperature_scaling)
    unset = Policy.never(trace.num_exits, score=score, temperatures=temperatures, network=trace.network)
    levels = quantise(early_scores(trace, unset))
    risks = {name: RISKS[name](trace) for name in limits}
    within_cost = max_cost is not None and not limits
    best = (
        _safest(levels, trace, float(max_cost or 0))
        if within_cost
        else _cheapest(levels, risks, limits, trace.cost, max_cost)
    )
    record = {
        "mode": "empirical",
        "limits": {**limits, **({} if max_cost is None else {"max_cost": max_cost})},
        "samples": len(trace),
        "data": trace.fingerprint(),
        "cost": best.cost,
    }
    return Policy(levels.thresholds(best.cuts), score, temperatures, trace.network, record)


def _checked(given: Mapping[str, float | None], max_cost: float | None, score: str) -> dict[str, float]:
    limits = {name: value for name, value in given.items() if value is not None}
    if not limits and max_cost is None:
        raise InputError(f"limits: expected at least one of {', '.join(given)} or max_cost, got none")
    for name, value in [*limits.items(), *([] if max_cost is None else [("max_cost", max_cost)])]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number in [0, 1] (0.01 is one per cent), got {value!r}")
    if score not in SCORES:
        raise InputError(f"score: expected one of {SCORES}, got {score!r}")
    return limits


def _temperatures(trace: Trace, scale: bool) -> tuple[float, ...]:
    if not scale or trace.labels is None:
        return (1.0,) * trace.num_exits
    return tuple(fit_temperature(trace.logits[:, k], trace.labels) for k in range(trace.num_exits))


def _cheapest(
    levels: Levels, risks: Mapping[str, Tensor], limits: Mapping[str, float], cost: Tensor, max_cost: float | None
) -> Point:
    """The cheapest policy that keeps every limit: frontiers of each risk and of their sum, then refined."""

    def allowed(cuts: Cuts) -> bool:
        means = {name: evaluate_cuts(levels.index, risk, cost, cuts).risk for name, risk in risks.items()}
        return all(mean <= limits[name] + 1e-12 for name, mean in means.items())

    columns = list(risks.values())
    if len(columns) > 1:
        columns.append(torch.stack([risk / max(limits[name], 1e-3) for name, risk in risks.items()]).sum(0))
    points = [point for risk in columns for point in frontier(levels.index, risk, cost) if allowed(point.cuts)]
    points.append(evaluate_cuts(levels.index, columns[0], cost, (math.inf,) * (len(cost) - 1)))
    best = refine(levels, columns[0], cost, min(points, key=lambda p: p.cost), allowed)
    if max_cost is not None and best.cost > max_cost:
        raise CalibrationError(
            f"max_cost: no policy found costs {max_cost:.3g} or less and keeps {dict(limits)}; the cheapest that keeps them "
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
