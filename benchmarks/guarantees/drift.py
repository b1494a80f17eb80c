"""How soon a monitor warns when backgrounds change, and how often it does when nothing changes."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch

import exitlens as xl
from benchmarks.guarantees.traces import CALIBRATION, collect_drifted, load_trace, recall_trace, run_in_parallel, subset
from exitlens.functional.risk import select_exits


def watch_stream(changes_at: int | None, seed: int) -> int | None:
    """Samples from the change (or the start) until the alarm; ``None``: no alarm in 10,000 samples (500 after a change)."""
    before, after = recall_trace("scenes-egt"), collect_drifted()
    rng = torch.Generator().manual_seed(seed)
    known = subset(before, torch.randint(len(before), (CALIBRATION,), generator=rng))
    policy = xl.calibrate(known, max_accuracy_drop=0.01, delta=0.1, seed=seed)
    watch = xl.Monitor(policy, seed=seed)

    def stream(trace: xl.Trace, count: int) -> xl.Drift:
        rows = torch.randint(len(trace), (count,), generator=rng)
        return watch.update(answer_on_paper(subset(trace, rows), policy))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.DriftWarning)
        if changes_at is None:
            return stream(before, 10_000).since
        if changes_at:
            stream(before, changes_at)
        early = watch.state().since
        since = stream(after, 500).since
    return None if since is None or early is not None else since - changes_at


def answer_on_paper(trace: xl.Trace, policy: xl.Policy) -> xl.Prediction:
    """What a policy answers to the samples of a trace."""
    exits = xl.route(trace, policy)
    p = torch.stack([(trace.logits[:, k] / policy.temperatures[k]).softmax(1) for k in range(trace.num_exits)], 1)
    chosen = p[torch.arange(len(p)), exits]
    return xl.Prediction(chosen.argmax(1), exits, select_exits(p.amax(2), exits), chosen)


def measure_drift(quick: bool) -> dict[str, Any]:
    runs = range(4 if quick else 200)
    load_trace("scenes-egt")
    collect_drifted()
    found: dict[str, Any] = {"runs": len(runs)}
    for key, at in (("at once", 0), ("after 1,000", 1000), ("after 5,000", 5000)):
        delays = run_in_parallel(partial(watch_stream, at), runs)
        known = sorted(d for d in delays if d is not None)
        found[key] = {"warned": len(known) / len(runs), "median_delay": known[len(known) // 2] if known else None}
    alarms = run_in_parallel(partial(watch_stream, None), [1000 + seed for seed in runs])
    found["unchanged, 10,000 samples"] = {"alarms": sum(a is not None for a in alarms) / len(runs)}
    return found
