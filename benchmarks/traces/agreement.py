"""What is read from compact logits against the full ones."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

import exitlens as xl
from benchmarks.traces.populations import draw_logits, make_trace
from exitlens.functional.scores import fit_temperature, rate_probabilities, score, score_of
from exitlens.types import SCORES

TEMPERATURES = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0)


def measure_agreement(quick: bool) -> dict[str, Any]:
    """The largest difference over all samples, exits and temperatures, and of what calibrate and evaluate make of it.

    Scores are compared with those of the full logits in float64; beside them those of the full logits in float32, which is
    what a running network has.
    """
    logits, labels = draw_logits(300 if quick else 10_000, 77)
    full, compact = make_trace(logits, labels, False), make_trace(logits, labels, True)
    forms, gaps = {"compact": compact, "full in float32": full}, {}
    for form, trace in forms.items():
        gaps[form] = dict.fromkeys((*SCORES, "squared_error"), 0.0)
        for k in range(full.num_exits):
            for temperature in TEMPERATURES:
                for name, gap in _compare(logits[:, k], trace, k, labels, temperature).items():
                    gaps[form][name] = max(gaps[form][name], gap)
    fitted = [[fit_temperature(trace.logits[:, k], labels) for k in range(4)] for trace in (full, compact)]
    policies = [xl.calibrate(trace, max_accuracy_drop=0.01) for trace in (full, compact)]
    reports = [xl.evaluate(trace, policies[0]) for trace in (full, compact)]
    rows = list(zip(reports[0].exits, reports[1].exits, strict=True))
    measures = ("calibration_error", "brier", "risk_coverage")
    return {
        "samples": len(labels),
        "largest_gap": gaps,
        "temperature_gap": max(abs(a / b - 1) for a, b in zip(*fitted, strict=True)),
        "exits_that_differ": (xl.route(full, policies[0]) != xl.route(compact, policies[0])).float().mean().item(),
        "report_gap": {name: max(abs(getattr(a, name) - getattr(b, name)) for a, b in rows) for name in measures},
        "calibrated_cost": [policy.calibration.cost for policy in policies if policy.calibration],
    }


def _compare(logits: Tensor, trace: xl.Trace, k: int, labels: Tensor, temperature: float) -> dict[str, float]:
    p = (logits.double() / temperature).softmax(1)
    gaps = {name: (score(trace.logits[:, k], name, temperature) - score_of(p, name)).abs().max().item() for name in SCORES}
    squared = (p - F.one_hot(labels, p.shape[1])).square().sum(1)
    rated = rate_probabilities(trace.logits[:, k], labels, temperature)
    return gaps | {"squared_error": (rated.squared_error - squared).abs().max().item()}
