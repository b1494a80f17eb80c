"""Whether an exit is computed and whether it fires: decided here for the policy on paper and for the running network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import require
from exitlens.functional.gating import estimate, mask_untrusted, require_gate_features
from exitlens.functional.scores import score, score_of
from exitlens.types import Policy, Trace
from exitlens.types.tasks import USUAL_SCORES


def fires(scores: Tensor, threshold: float) -> Tensor:  # (B,) -> (B,) bool
    """An exit fires at ``score >= threshold``; an infinite threshold never fires."""
    return scores >= threshold


def find_first_firing(scores: Tensor, thresholds: Sequence[float]) -> Tensor:  # (N,K-1) -> (N,)
    """Index of the first exit that fires for each sample; the final exit, K-1, where none does."""
    exits = torch.full((len(scores),), len(thresholds), dtype=torch.long)
    for k in reversed(range(len(thresholds))):
        exits[fires(scores[:, k], thresholds[k])] = k
    return exits


class Decision(NamedTuple):
    """What an early exit decides about each sample of a batch.

    Attributes:
        scores: ``(B,)`` compared with the threshold: 0 where the policy's gate does not trust the map.
        estimates: ``(B,)`` the gate's estimates of the map's divergence from the final one; ``None`` without a gate.
        threshold: of the exit.
    """

    scores: Tensor
    estimates: Tensor | None
    threshold: float

    @property
    def fired(self) -> Tensor:  # (B,) bool
        """Which samples leave here, if they come this far."""
        return fires(self.scores, self.threshold)


def decide(policy: Policy, k: int, p: Tensor, scores: Tensor, gate_features: Tensor | None) -> Decision:
    """The decision of early exit k, from probabilities ``(B,C)`` and the policy's score of them ``(B,)``.

    A policy with a gate also needs the gate features ``(B,2)`` of the exit's map.
    """
    confidence = None if policy.gate is None else score_of(p, USUAL_SCORES[policy.task])
    return _decide(policy, k, scores, confidence, gate_features)


def _decide(policy: Policy, k: int, scores: Tensor, confidence: Tensor | None, gate_features: Tensor | None) -> Decision:
    """From the largest probability ``(B,)`` (of several labels: how decided they are), which a gate needs."""
    if policy.gate is None:
        return Decision(scores, None, policy.thresholds[k])
    assert confidence is not None, "a gate needs it"
    assert gate_features is not None, "a gate needs them"
    estimates = estimate(policy.gate, k, confidence, gate_features)
    return Decision(mask_untrusted(scores, estimates, policy.gate.limits[k]), estimates, policy.thresholds[k])


def needs_head(policy: Policy, k: int) -> bool:
    """Whether adaptive inference computes the head of exit k.

    The final exit's always. An early exit's if it can fire, or if its map is a gate feature of a later one that can.
    """
    if k == len(policy.thresholds):
        return True
    return any(t != math.inf for t in (policy.thresholds[k : k + 1] if policy.gate is None else policy.thresholds[k:]))


def cover(policies: Sequence[Policy]) -> Policy:
    """A policy for which every head is computed that one of these needs: what to cut a network by, not to answer by."""
    early = range(policies[0].num_exits - 1)
    thresholds = tuple(0.0 if any(needs_head(one, k) for one in policies) else math.inf for k in early)
    return Policy(thresholds, policies[0].score)


def score_early_exits(trace: Trace, policy: Policy) -> Tensor:  # -> (N,K-1)
    """The policy's score at every early exit of every sample in the trace, 0 where its gate does not trust the map.

    Raises :class:`InputError` for a policy with a gate and a trace without gate features.
    """
    if trace.num_exits == 1:
        return torch.empty(len(trace), 0)
    gate_features, columns = None if policy.gate is None else require_gate_features(trace), []
    for k in range(trace.num_exits - 1):
        logits, temperature = trace.logits[:, k], policy.temperatures[k]
        features = confidence = None
        if gate_features is not None:
            features, confidence = gate_features[:, k], score(logits, USUAL_SCORES[policy.task], temperature)
        columns.append(_decide(policy, k, score(logits, policy.score, temperature), confidence, features).scores)
    return torch.stack(columns, 1)


def route(trace: Trace, policy: Policy) -> Tensor:
    """The exit that each sample of the trace takes: ``(N,)`` integers in ``[0, K)``.

    Raises:
        PolicyError: if the policy has another number of exits or was calibrated for another network.

    Examples:
        >>> xl.route(trace, xl.Policy(thresholds=(0.0, math.inf))).unique()  # 0: always fires at exit 0
        tensor([0])
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(trace.num_exits, trace.network, trace.task)
    return find_first_firing(score_early_exits(trace, policy), policy.thresholds)
