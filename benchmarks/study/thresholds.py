"""One threshold for all exits: nothing about it is chosen, or only a budget of cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

import exitlens as xl
from exitlens.functional.scores import fit_temperature

LEVELS = (0.0, *(1 - 10 ** (-i / 16) for i in range(1, 81)), math.inf)


def fit_temperatures(trace: xl.Trace) -> tuple[float, ...]:
    labels = trace.require_labels("study")
    return tuple(fit_temperature(trace.logits[:, k], labels) for k in range(trace.num_exits))


def follow_common_threshold(test: xl.Trace, temperatures: Sequence[float]) -> list[tuple[float, float]]:
    """(cost, accuracy) on test data as one threshold for all exits goes from 0 to never: nothing is chosen."""
    if test.num_exits == 1:
        return [(point.cost, point.accuracy) for point in xl.anytime(test)]
    policies = [make_common_policy(level, test.num_exits, temperatures) for level in LEVELS]
    return [(measure_cost(test, policy), _measure_accuracy(test, policy)) for policy in policies]


def make_common_policy(level: float, num_exits: int, temperatures: Sequence[float]) -> xl.Policy:
    return xl.Policy((level,) * (num_exits - 1), temperatures=tuple(temperatures))


def fit_budget(calibration: xl.Trace, temperatures: Sequence[float], budget: float) -> xl.Policy:
    """The highest common threshold whose mean cost is within the budget; it needs no labels."""
    policies = [make_common_policy(level, calibration.num_exits, temperatures) for level in LEVELS]
    return [policy for policy in policies if measure_cost(calibration, policy) <= budget][-1]


def measure_cost(trace: xl.Trace, policy: xl.Policy) -> float:
    return trace.cost[xl.route(trace, policy)].double().mean().item()


def _measure_accuracy(trace: xl.Trace, policy: xl.Policy) -> float:
    answers = trace.logits[torch.arange(len(trace)), xl.route(trace, policy)].argmax(1)
    return (answers == trace.require_labels("study")).double().mean().item()
