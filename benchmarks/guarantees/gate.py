"""What the gate saves at equal limits on divergence."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch

import exitlens as xl
from benchmarks.guarantees.traces import load_trace, recall_trace, run_in_parallel, subset

SHARES = (0.2, 0.4, 0.6, 0.8)  # limits, over exit 0's mean divergence


def measure_one_gate(name: str, seed: int) -> list[list[float]]:
    """At limits on divergence: cost and divergence on other samples, without and with the gate."""
    trace = recall_trace(name)
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = subset(trace, order[: len(order) // 2]), subset(trace, order[len(order) // 2 :])
    rows = []
    for share in SHARES:
        limit = share * float(known.divergence[:, 0].mean())
        policies = [xl.calibrate(known, max_divergence=limit, max_accuracy_drop=0.02, gate=gate) for gate in (False, True)]
        values = []
        for policy in policies:
            report = xl.evaluate(test, policy)
            values += [report.cost, report.divergence]
        rows.append([limit, *values, float(policies[1].gate is not None)])
    return rows


def measure_gate(name: str, quick: bool) -> dict[str, Any]:
    load_trace(name)
    table = np.array(run_in_parallel(partial(measure_one_gate, name), range(4 if quick else 20)))
    means, errors = table.mean(0), table.std(0, ddof=1) / math.sqrt(len(table))
    keys = ("limit", "cost", "divergence", "cost_gated", "divergence_gated", "used")
    rows = [dict(zip(keys, map(float, row), strict=True)) for row in means]
    for row, error, draws in zip(rows, errors, table.transpose(1, 0, 2), strict=True):
        change = draws[:, 3] / draws[:, 1] - 1
        row["cost_change"] = float(change.mean())
        row["cost_change_error"] = float(change.std(ddof=1) / math.sqrt(len(change)))
        row["divergence_error"] = float(error[4])
    return {"splits": len(table), "rows": {str(share): row for share, row in zip(SHARES, rows, strict=True)}}
