"""A network for film reviews on other texts: what it is worth there, and whether and when the drift watch tells."""

from __future__ import annotations

import warnings
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import exitlens as xl
from benchmarks.guarantees.drift import answer_on_paper

ORDERS = 50
LIMIT, DELTA = 0.01, 0.1  # points lost at most, and how likely that promise may be wrong


def certify(calibration: xl.Trace) -> xl.Policy:
    """The policy that all of this is about."""
    return xl.calibrate(calibration, max_accuracy_drop=LIMIT, delta=DELTA)


def measure_set(policy: xl.Policy, trace: xl.Trace) -> dict[str, Any]:
    """Accuracy of every exit and of the policy on some texts, what it costs, where they leave; and the drift watch."""
    report = xl.evaluate(trace, policy)
    return {
        "texts": len(trace),
        "positive": trace.require_labels("labels").float().mean().item(),
        "accuracy": [row.accuracy for row in report.exits],
        "routed": report.accuracy,
        "drop": report.accuracy_drop,
        "cost": report.cost,
        "exit_shares": list(report.exit_shares),
        **watch(policy, answer_on_paper(trace, policy)),
    }


def watch(policy: xl.Policy, pred: xl.Prediction, orders: int = ORDERS) -> dict[str, Any]:
    """Gives the same answers to new drift watches, in other random orders: how many raise an alarm, and after how many texts.

    ``median`` is over the orders that had an alarm; ``slowest`` is the latest, ``None`` where some had none.
    """
    alarms = [_find_alarm(policy, pred, seed) for seed in range(orders)]
    known = [one for one in alarms if one is not None]
    return {
        "orders": orders,
        "alarms": len(known),
        "median": median(known) if known else None,
        "slowest": max(known) if len(known) == orders else None,
        "confidence": pred.confidence.mean().item(),
    }


def _find_alarm(policy: xl.Policy, pred: xl.Prediction, seed: int) -> int | None:
    order = torch.randperm(len(pred), generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        pred,
        labels=pred.labels[order],
        exits=pred.exits[order],
        confidence=pred.confidence[order],
        probabilities=pred.probabilities[order],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.DriftWarning)
        return xl.Monitor(policy, seed=seed).update(shuffled).since
