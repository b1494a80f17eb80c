"""The gate: an estimate, before the final map exists, of how far an early exit's map is from it, and a limit to that."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.maps import on_common_grid
from exitlens.functional.scores import score
from exitlens.functional.similarity import divergence
from exitlens.types import Gate, Trace
from exitlens.types.tasks import USUAL_SCORES

RIDGE = 1e-4  # of the mean square of each gate feature
SHARES = (1.0, 0.97, 0.93, 0.87, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the samples that a gate may trust, tried in turn


def compute_gate_features(attention: Tensor, previous: Tensor | None) -> Tensor:  # (B,*S), (B,*S') -> (B,2)
    """Each map's entropy relative to a uniform map's, and its divergence from the exit before's (0 at the first)."""
    flat = attention.float().flatten(1)
    entropy = -torch.special.xlogy(flat, flat).sum(1) / math.log(max(flat.shape[1], 2))
    if previous is None:
        return torch.stack([entropy, torch.zeros_like(entropy)], 1)
    return torch.stack([entropy, divergence(*on_common_grid(previous.float(), attention.float()))], 1)


def estimate(gate: Gate, k: int, confidence: Tensor, gate_features: Tensor) -> Tensor:  # (B,), (B,2) -> (B,)
    """The gate's estimate of the divergence of exit k's map from the final one, in [0, 1]."""
    sure, entropy, change, constant = gate.weights[k]
    return (sure * confidence + entropy * gate_features[:, 0] + change * gate_features[:, 1] + constant).clamp(0, 1)


def mask_untrusted(scores: Tensor, estimates: Tensor, limit: float) -> Tensor:  # (B,), (B,) -> (B,)
    """The scores of samples whose map is trusted, and 0 for the others."""
    return torch.where(estimates <= limit, scores, torch.zeros_like(scores))


def estimate_trace(trace: Trace, temperatures: Sequence[float], gate: Gate) -> Tensor:  # -> (N,K-1)
    """The gate's estimates at every early exit of every sample; see :func:`require_gate_features`."""
    gate_features, columns = require_gate_features(trace), []
    for k in range(trace.num_exits - 1):
        confidence = score(trace.logits[:, k], USUAL_SCORES[trace.task], temperatures[k])
        columns.append(estimate(gate, k, confidence, gate_features[:, k]))
    return torch.stack(columns, 1) if columns else torch.empty(len(trace), 0)


def require_gate_features(trace: Trace) -> Tensor:
    """The trace's gate features; raises :class:`InputError` where it has none."""
    if trace.gate_features is None:
        raise InputError("trace: a gate needs gate_features and this trace has none: collect it again, by exitlens.collect")
    return trace.gate_features


def fit_gate(trace: Trace, rows: Tensor, temperatures: Sequence[float]) -> Gate:
    """A gate without limits, fitted by ridge regression to the divergences measured on the samples at ``rows`` ``(n,)``."""
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
    """The gate that trusts, at each exit, this share of the samples with these ``estimates`` ``(n,K-1)``."""
    if share >= 1:
        return gate
    limits = [column.double().quantile(share, interpolation="midpoint").item() for column in estimates.T]
    return Gate(gate.weights, tuple(limits))
