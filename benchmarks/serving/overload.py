"""Three times the load that a server bears: what is refused, how late the others are, and how soon it is over."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.serving.faults import count_status
from benchmarks.serving.load.beside import Poll, start_load
from benchmarks.serving.load.requests import Array
from benchmarks.serving.load.trials import Spec, Trial, make_plan
from benchmarks.serving.networks import LIMITS, prepare
from benchmarks.serving.ours import make_requests, read_memory, start_ours
from benchmarks.serving.speed import LOAD, SERVER

CONNECTIONS = 512
CALM, OVER = 0.3, 3.0  # of the rate that the server bears
CALM_SECONDS = 10.0
WAIT = 0.4  # of the limit: so much work may be before a request; the rest is for its own, and for company
POLL_SECONDS = 0.5  # between looks at the memory
REFUSALS = (429, 503)


def measure_overload(name: str, capacity_rate: float, seconds: float = 60.0) -> dict[str, Any]:
    """A calm time, three times the capacity for ``seconds``, and another calm time.

    Args:
        capacity_rate: requests a second that the server bears.
    """
    prepared, limit = prepare(name), LIMITS[name]
    requests, batching = make_requests(prepared), {"max_wait_ms": 1000 * WAIT * limit, "max_waiting": 4096}
    phases = [(CALM * capacity_rate, CALM_SECONDS), (OVER * capacity_rate, seconds), (CALM * capacity_rate, CALM_SECONDS)]
    plan = make_plan(phases, len(requests), seed=7)
    with start_ours(prepared.exits, prepared.samples[0], processors=SERVER, batching=batching) as server:
        spec = Spec(server.port, requests, plan, connections=CONNECTIONS, warmup=1.0, processors=LOAD)
        before = read_memory(server)
        with Poll(lambda: read_memory(server), POLL_SECONDS) as memory, start_load(spec) as load:
            trial = load.result()
        after = read_memory(server)
    start, end = CALM_SECONDS, CALM_SECONDS + seconds
    parts = {"calm": (spec.warmup, start), "overload": (start, end), "after": (end, end + CALM_SECONDS)}
    return {
        "capacity_rate": capacity_rate,
        "limit_ms": 1000 * limit,
        "memory_mb": {"before": before, "peak": max([before, after, *memory.found]), "after": after},
        "recovery_seconds": find_recovery(trial, end, limit),
        "load_busy": trial.busy,
        **{part: describe_part(trial, *times) for part, times in parts.items()},
    }


def describe_part(trial: Trial, start: float, end: float) -> dict[str, Any]:
    """Of the requests that were due in these seconds: statuses, answers a second, 99th percentiles, other failures."""
    chosen = (trial.scheduled >= start) & (trial.scheduled < end)
    seconds, status = (trial.finished - trial.scheduled)[chosen], trial.status[chosen]
    refused = np.isin(status, REFUSALS)
    return {
        "requests": int(chosen.sum()),
        "status": count_status(status),
        "answers_a_second": float((status == 200).sum() / (end - start)),
        "accepted_p99_ms": _find_p99_ms(seconds[status == 200]),
        "refused_p99_ms": _find_p99_ms(seconds[refused]),
        "others": int((~refused & (status != 200)).sum()),
    }


def _find_p99_ms(seconds: Array) -> float | None:
    return float(1000 * np.quantile(seconds, 0.99, method="higher")) if len(seconds) else None


def find_recovery(trial: Trial, end: float, limit: float) -> float | None:
    """Seconds after ``end`` from which on all requests are answered with 200 within the limit; ``None``: they never are."""
    later = trial.scheduled >= end
    bad = later & ~(trial.latency <= limit)
    if not later.any() or bad[np.flatnonzero(later)[-1]]:
        return None
    return float(trial.scheduled[bad].max() - end) if bad.any() else 0.0
