"""Whether an exit fires: the one place that decides it, for the policy on paper and for the running network alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exitlens.errors import require
from exitlens.functional.gating import estimate_trace, mask_untrusted
from exitlens.functional.scores import score
from exitlens.types import Policy, Trace


def fires(scores: Tensor, threshold: float) -> Tensor:  # (B,) -> (B,) bool
    """An exit fires at ``score >= threshold``; an infinite threshold never fires."""
    return scores >= threshold


def find_first_firing(scores: Tensor, thresholds: Sequence[float]) -> Tensor:  # (N,K-1) -> (N,)
    """Index of the first exit that fires for each sample; the final exit, K-1, where none does."""
    exits = torch.full((len(scores),), len(thresholds), dtype=torch.long)
    for k in reversed(range(len(thresholds))):
        exits[fires(scores[:, k], thresholds[k])] = k
    return exits


def score_early_exits(trace: Trace, policy: Policy) -> Tensor:  # -> (N,K-1)
    """The policy's score at every early exit of every sample in the trace, 0 where its gate does not trust the map."""
    k = trace.num_exits - 1
    columns = [score(trace.logits[:, i], policy.score, policy.temperatures[i]) for i in range(k)]
    scores = torch.stack(columns, 1) if columns else torch.empty(len(trace), 0)
    if policy.gate is None or not columns:
        return scores
    estimates = estimate_trace(trace, policy.temperatures, policy.gate)
    return torch.stack([mask_untrusted(scores[:, i], estimates[:, i], policy.gate.limits[i]) for i in range(k)], 1)


def score_final_exit(trace: Trace, policy: Policy) -> Tensor:  # -> (N,1)
    """The policy's score at the final exit, which nothing depends on."""
    return score(trace.logits[:, -1], policy.score, policy.temperatures[-1])[:, None]


def route(trace: Trace, policy: Policy) -> Tensor:
    """The exit that each sample of the trace takes: ``(N,)`` integers in ``[0, K)``.

    Raises:
        PolicyError: if the policy has another number of exits or was calibrated for another network.
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(trace.num_exits, trace.network)
    return find_first_firing(score_early_exits(trace, policy), policy.thresholds)
