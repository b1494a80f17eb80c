"""What certified policies save: against hindsight, RC-EENN's single threshold (arXiv 2405.20915) and CRC."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import exitlens as xl
from benchmarks.guarantees.traces import CALIBRATION, load_trace, recall_trace, run_in_parallel, subset
from exitlens.functional.risk import accuracy_drop, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.thresholds.pvalues import betting, hoeffding_bentkus, paired


def measure_one_saving(name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Cost on the test samples at delta 0.1, limit 1 %, and whether the limit is kept there: ours and the others."""
    trace, limit, delta = recall_trace(name), 0.01, 0.1
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = subset(trace, order[:CALIBRATION]), subset(trace, order[CALIBRATION:])

    drop = accuracy_drop(test)

    def cost(policy: xl.Policy) -> tuple[float, float]:
        exits = xl.route(test, policy)
        broken = select_exits(drop, exits).double().mean().item() > limit + 1e-9
        return test.cost[exits].double().mean().item(), float(broken)

    ours = xl.calibrate(known, max_accuracy_drop=limit, delta=delta, seed=seed)
    hindsight = xl.calibrate(test, max_accuracy_drop=limit)
    return {"ours": cost(ours), "hindsight": cost(hindsight)} | {
        label: cost(policy) for label, policy in choose_single_thresholds(known, limit, delta).items()
    }


def choose_single_thresholds(trace: xl.Trace, limit: float, delta: float) -> dict[str, xl.Policy]:
    """One threshold for all exits (RC-EENN, arXiv 2405.20915): by its upper bound (UCB) and in expectation (CRC)."""
    scores, losses = score_early_exits(trace, xl.Policy.never(trace.num_exits)), accuracy_drop(trace)
    grid = torch.linspace(1, 0, 201, dtype=torch.float64).tolist()
    rows = [select_exits(losses, find_first_firing(scores, (t,) * scores.shape[1])).double().numpy() for t in grid]
    count, found = len(trace), {}

    def best(accepts: Callable[[np.ndarray], bool]) -> xl.Policy:
        chosen = math.inf
        for threshold, values in zip(grid, rows, strict=True):
            if not accepts(values):
                break
            chosen = threshold
        return xl.Policy((chosen,) * scores.shape[1])

    half = (1 + limit) / 2
    found["single threshold, UCB (betting)"] = best(lambda v: float(betting((v[None] + 1) / 2, half, delta)[0]) <= delta)
    found["single threshold, LTT (Hoeffding-Bentkus)"] = best(
        lambda v: float(hoeffding_bentkus(np.array([(v.mean() + 1) / 2]), count, half)[0]) <= delta
    )
    found["single threshold, LTT (our paired test)"] = best(
        lambda v: float(paired(np.array([(v > 0).sum()]), np.array([(v < 0).sum()]), count, limit)[0]) <= delta
    )
    found["single threshold, CRC (in expectation only)"] = best(
        lambda v: count / (count + 1) * v.mean() + 1 / (count + 1) <= limit
    )
    return found


def measure_savings(name: str, quick: bool) -> dict[str, Any]:
    count = 6 if quick else 200
    load_trace(name)
    table = run_in_parallel(partial(measure_one_saving, name), range(count))
    costs = {label: float(np.mean([row[label][0] for row in table])) for label in table[0]}
    broken = {label: float(np.mean([row[label][1] for row in table])) for label in table[0]}
    return {
        "splits": count,
        "costs": costs,
        "broken": broken,
        "share_of_hindsight": {k: (1 - c) / (1 - costs["hindsight"]) for k, c in costs.items()},
    }
