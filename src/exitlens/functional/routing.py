"""Routing: whether an exit fires, and the gate, which estimates the divergence of its map from the final one beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.maps import divergence, on_common_grid
from exitlens.functional.scores import score, score_of
from exitlens.types import Gate, Policy, Trace
from exitlens.types.tasks import USUAL_SCORES

RIDGE = 1e-4  # damping, as a share of each gate feature's sum of squares
SHARES = (1.0, 0.97, 0.93, 0.87, 0.8, 0.7, 0.6, 0.5, 0.4)  # shares of samples that a gate trusts, tried in turn


def compute_gate_features(attention: Tensor, previous: Tensor | None) -> Tensor:  # (B,*S), (B,*S') -> (B,2)
    """Return each map's entropy over a uniform map's, and its divergence from the exit before's (0 at the first)."""
    flat = attention.float().flatten(1)
    entropy = -torch.special.xlogy(flat, flat).sum(1) / math.log(max(flat.shape[1], 2))
    if previous is None:
        return torch.stack([entropy, torch.zeros_like(entropy)], 1)
    return torch.stack([entropy, divergence(*on_common_grid(previous.float(), attention.float()))], 1)


def estimate(gate: Gate, k: int, confidence: Tensor, gate_features: Tensor) -> Tensor:  # (B,), (B,2) -> (B,)
    """Return the gate's estimate of the divergence of exit k's map from the final one, in [0, 1]."""
    sure, entropy, change, constant = gate.weights[k]
    return (sure * confidence + entropy * gate_features[:, 0] + change * gate_features[:, 1] + constant).clamp(0, 1)


def mask_untrusted(scores: Tensor, estimates: Tensor, limit: float | Tensor) -> Tensor:
    """Return the scores, or 0 where the map is not trusted."""
    return torch.where(estimates <= limit, scores, torch.zeros_like(scores))


def estimate_trace(trace: Trace, temperatures: Sequence[float], gate: Gate) -> Tensor:  # -> (N,K-1)
    """Return the gate's estimates at every early exit of every sample."""
    gate_features, columns = require_gate_features(trace), []
    for k in range(trace.num_exits - 1):
        confidence = score(trace.logits[:, k], USUAL_SCORES[trace.task], temperatures[k])
        columns.append(estimate(gate, k, confidence, gate_features[:, k]))
    return torch.stack(columns, 1) if columns else torch.empty(len(trace), 0)


def require_gate_features(trace: Trace) -> Tensor:
    """Return the trace's gate features; raise :class:`InputError` if it has none."""
    if trace.gate_features is None:
        raise InputError("trace: a gate needs gate_features and this trace has none: collect it again, by exitlens.collect")
    return trace.gate_features


def fit_gate(trace: Trace, rows: Tensor, temperatures: Sequence[float]) -> Gate:
    """Fit a gate without limits, by ridge regression, to the divergences measured on the samples at ``rows`` ``(n,)``."""
    gate_features, weights = require_gate_features(trace)[rows].double(), []
    for k in range(trace.num_exits - 1):
        confidence = score(trace.logits[rows, k], USUAL_SCORES[trace.task], temperatures[k]).double()
        columns = torch.stack([confidence, gate_features[:, k, 0], gate_features[:, k, 1]], 1)
        centre = columns.mean(0)
        x, y = columns - centre, trace.divergence[rows, k].double()
        square = x.T @ x
        damping = RIDGE * square.diagonal().clamp_min(1e-9)
        slope = torch.linalg.solve(square + damping.diag(), x.T @ (y - y.mean()))
        weights.append((*slope.tolist(), (y.mean() - centre @ slope).item()))
    return Gate(tuple(weights), (math.inf,) * len(weights))


def limit_gate(gate: Gate, estimates: Tensor, share: float) -> Gate:
    """Return the gate that trusts, at each exit, this share of the samples with these ``estimates`` ``(n,K-1)``."""
    if share >= 1:
        return gate
    limits = [column.double().quantile(share, interpolation="midpoint").item() for column in estimates.T]
    return Gate(gate.weights, tuple(limits))


def fires(scores: Tensor, threshold: float) -> Tensor:  # (B,) -> (B,) bool
    """Return whether an exit fires: at ``score >= threshold``, so never at an infinite threshold."""
    return scores >= threshold


def find_first_firing(scores: Tensor, thresholds: Sequence[float]) -> Tensor:  # (N,K-1) -> (N,)
    """Return the index of the first exit that fires for each sample; if none fires the final exit, K-1."""
    exits = torch.full((len(scores),), len(thresholds), dtype=torch.long)
    for k in reversed(range(len(thresholds))):
        exits[fires(scores[:, k], thresholds[k])] = k
    return exits


class Decision(NamedTuple):
    """Decisions of an early exit about a batch."""

    scores: Tensor  # (B,) compared with the threshold: 0 where the policy's gate does not trust the map
    estimates: Tensor | None  # (B,) of the map's divergence from the final one, by the gate; None without one
    threshold: float

    @property
    def fired(self) -> Tensor:  # (B,) bool
        """True for samples that leave here if they come this far."""
        return fires(self.scores, self.threshold)


def decide(policy: Policy, k: int, p: Tensor, scores: Tensor, gate_features: Tensor | None) -> Decision:
    """Decide at early exit k from probabilities ``(B,C)``, scores ``(B,)`` and, for a gate, gate features ``(B,2)``."""
    if policy.gate is None:
        return Decision(scores, None, policy.thresholds[k])
    assert gate_features is not None, "a gate needs them"
    estimates = estimate(policy.gate, k, score_of(p, USUAL_SCORES[policy.task]), gate_features)
    return Decision(mask_untrusted(scores, estimates, policy.gate.limits[k]), estimates, policy.thresholds[k])


def needs_head(policy: Policy, k: int) -> bool:
    """Return whether the head of exit k is computed: if it is final, can fire, or has a gate feature of a later exit."""
    if k == len(policy.thresholds):
        return True
    return any(t != math.inf for t in (policy.thresholds[k : k + 1] if policy.gate is None else policy.thresholds[k:]))


def cover(policies: Sequence[Policy]) -> Policy:
    """Return a policy that needs every head that one of these policies needs: for cutting a network, not for answering."""
    early = range(policies[0].num_exits - 1)
    thresholds = tuple(0.0 if any(needs_head(policy, k) for policy in policies) else math.inf for k in early)
    return Policy(thresholds, policies[0].score)


def score_early_exits(trace: Trace, policy: Policy) -> Tensor:  # -> (N,K-1)
    """Return the policy's score at every early exit of every sample, 0 where its gate does not trust the map."""
    columns = [score(trace.logits[:, k], policy.score, policy.temperatures[k]) for k in range(trace.num_exits - 1)]
    scores = torch.stack(columns, 1) if columns else torch.empty(len(trace), 0)
    if policy.gate is None:
        return scores
    estimates = estimate_trace(trace, policy.temperatures, policy.gate)
    return mask_untrusted(scores, estimates, torch.tensor(policy.gate.limits))


def route(trace: Trace, policy: Policy) -> Tensor:
    """Return the exit that each sample of the trace takes: ``(N,)`` integers in ``[0, K)``.

    Examples:
        >>> xl.route(trace, xl.Policy(thresholds=(0.0, math.inf))).unique()  # 0: always fires at exit 0
        tensor([0])
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(trace.num_exits, trace.network, trace.task)
    return find_first_firing(score_early_exits(trace, policy), policy.thresholds)
