"""Routing: whether an exit fires; and the gate, which estimates beforehand whether the final exit would answer the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.maps import find_locations
from exitlens.functional.scores import score, score_of
from exitlens.types import Gate, Policy, Trace
from exitlens.types.policies import GATE_FEATURES
from exitlens.types.settings import CHANGE_SCORES
from exitlens.types.tasks import USUAL_SCORES

# on the weights of standardised gate features, beside the sum of the samples' losses; confidence has the second, so that it
# decides where too few samples tell anything of the others
RIDGE, RIDGE_OF_CONFIDENCE = 10.0, 0.1
LEFT_OUT = 0.1  # of the locations: those that add most to an answer's margin
LEAST = 1e-6  # a confidence is at least so far from 0 and 1
LEAST_SPREAD = 1e-2  # of a feature: the weight of one that hardly varies would make estimates depend on rounding
Array = NDArray[np.float64]


def find_direction(logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # (B,C), (C,D) -> (B,D), (B,)
    """Return the weights whose product with the features is the largest logit's margin over the next, and that margin.

    Biases are in the margin alone. Of several labels, too, it is the strongest one's over the next.
    """
    top = logits.topk(2, 1)
    return weight[top.indices[:, 0]] - weight[top.indices[:, 1]], top.values[:, 0] - top.values[:, 1]


def measure_support(shares: Tensor, margin: Tensor, attention: Tensor) -> Tensor:  # (B,N), (B,), (B,*S) -> (B,3)
    """Return what an answer rests on: its margin without few places, the share of the map that supports it, and the entropy.

    ``shares`` is what each location adds to the margin. The first column is the margin without the tenth of the locations
    that add most: an answer that rests on a small part loses all there, although it is as sure as any (as masking in
    PatchGuard, arXiv 2005.10884, but for all answers and to estimate, not to certify). The second is the attention on the
    locations that add anything, the third the map's entropy, in nats.
    """
    shares, flat, real = shares.float(), attention.float().flatten(1), find_locations(attention)
    if real is None:
        most = shares.topk(max(1, round(LEFT_OUT * shares.shape[1])), 1).values.clamp_min(0).sum(1)
    else:
        ordered = shares.clamp_min(0).sort(1, descending=True).values.cumsum(1)
        count = (LEFT_OUT * real.flatten(1).sum(1)).round().long().clamp_min(1)
        most = ordered.gather(1, count[:, None] - 1)[:, 0]
    entropy = -torch.xlogy(flat, flat).sum(1)
    return torch.stack([margin.float() - most, (flat * (shares > 0)).sum(1), entropy], 1)


def measure_evidence_support(evidence: Tensor, logits: Tensor, attention: Tensor) -> Tensor:  # (B,C,*S), (B,C), (B,*S)
    """Return :func:`measure_support` of an exit's evidence."""
    flat = evidence.float().flatten(2)
    direction, margin = find_direction(logits, torch.eye(flat.shape[1], device=flat.device))
    return measure_support((direction[:, None] @ flat)[:, 0], margin, attention)


def stack_support(support: list[Tensor]) -> Tensor:  # (B,3) by exit -> (B,K-1,3)
    """Return what a trace keeps for gates: :func:`measure_support` of the early exits."""
    return torch.stack(support[:-1], 1) if len(support) > 1 else support[0].new_empty(len(support[0]), 0, 3)


def estimate(gate: Gate, k: int, confidence: Tensor, support: Tensor, temperature: float) -> Tensor:  # -> (B,)
    """Return the gate's estimate of the chance that the final exit answers as exit k does.

    ``confidence`` ``(B,)`` is the usual score at this temperature, and ``support`` ``(B,3)`` of :func:`measure_support`.
    """
    odds, margin, *others, constant = gate.weights[k]
    rest = torch.addmv(support.new_tensor([constant]), support, support.new_tensor([margin / temperature, *others]))
    return torch.add(rest, torch.logit(confidence.float(), LEAST), alpha=odds).sigmoid()


def stack_trace_features(trace: Trace, policy: Policy) -> Tensor:  # -> (N,K-1,4)
    """Return the features of a gate, in the order of ``GATE_FEATURES``, at every early exit of every sample."""
    columns = []
    for k, (confidence, support) in enumerate(_list_gate_inputs(trace, policy)):
        odds = torch.logit(confidence.float(), LEAST)
        columns.append(torch.cat([odds[:, None], support[:, :1] / policy.temperatures[k], support[:, 1:]], 1))
    return torch.stack(columns, 1) if columns else torch.empty(len(trace), 0, len(GATE_FEATURES))


def _list_gate_inputs(trace: Trace, policy: Policy) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield confidences ``(N,)`` and support ``(N,3)`` of every early exit."""
    if trace.num_exits > 1 and trace.gate_features is None:
        raise InputError(
            "gate: expected a trace with gate_features, got one without. Fix: collect it by exitlens.collect, of a network "
            "whose exits have maps, or leave gate out."
        )
    for k in range(trace.num_exits - 1):
        assert trace.gate_features is not None
        yield score(trace.logits[:, k], USUAL_SCORES[trace.task], policy.temperatures[k]), trace.gate_features[:, k]


def fit_gate(features: Tensor, target: Tensor) -> Gate:  # (n,E,4), (n,E) in [0, 1]
    """Fit a gate by logistic regression at every early exit, with a ridge on the weights of standardised features."""
    weights, ridge = [], np.array([RIDGE_OF_CONFIDENCE, *[RIDGE] * (features.shape[2] - 1), 0.0])
    for x, y in zip(features.double().unbind(1), target.double().unbind(1), strict=True):
        centre, spread = x.mean(0), x.std(0, correction=0).clamp_min(LEAST_SPREAD)
        scaled = torch.cat([(x - centre) / spread, x.new_ones(len(x), 1)], 1).numpy()
        truth = y.numpy()

        def loss(w: Array, scaled: Array = scaled, truth: Array = truth) -> tuple[float, Array]:
            logits = scaled @ w
            slope = scaled.T @ (expit(logits) - truth)
            return float((np.logaddexp(0, logits) - truth * logits).sum() + ridge @ w**2 / 2), slope + ridge * w

        fitted = torch.from_numpy(minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B").x)
        slopes = fitted[:-1] / spread
        weights.append((*slopes.tolist(), (fitted[-1] - slopes @ centre).item()))
    return Gate(tuple(weights))


def match_confidences(gate: Gate, scores: Tensor, exits: Tensor) -> Gate:  # (n,K-1), (n,)
    """Return the gate with the scores above which as many samples would leave at each exit without it."""
    levels = []
    for k, column in enumerate(scores.unbind(1)):
        count, here = int((exits == k).sum()), column[exits >= k]
        levels.append(here.sort(descending=True).values[count - 1].item() if count else math.inf)
    return replace(gate, confidences=tuple(levels))


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

    scores: Tensor  # (B,) compared with the threshold: with a gate, its estimates
    fired: Tensor  # (B,) bool: the samples that leave here if they come this far
    refused: Tensor | None = None  # (B,) bool: that would leave by their confidence, but for the gate; None: not known


def decide(policy: Policy, k: int, p: Tensor, scores: Tensor, support: Tensor | None) -> Decision:
    """Decide at early exit k from probabilities ``(B,C)``, scores ``(B,)`` and, for a gate, its support ``(B,3)``."""
    threshold, gate = policy.thresholds[k], policy.gate
    if gate is None:
        return Decision(scores, fires(scores, threshold))
    assert support is not None, "a gate needs it"
    usual = USUAL_SCORES[policy.task]
    estimates = estimate(gate, k, scores if policy.score == usual else score_of(p, usual), support, policy.temperatures[k])
    fired = fires(estimates, threshold)
    if not gate.confidences or threshold == math.inf:  # an exit that never answers refuses nothing
        return Decision(estimates, fired)
    return Decision(estimates, fired, fires(scores, gate.confidences[k]) > fired)


def needs_head(policy: Policy, k: int) -> bool:
    """Return whether the head of exit k is computed: if it is final, or can fire, or the next can by the change since."""
    compared = policy.thresholds[k : k + 1 + (policy.score in CHANGE_SCORES)]
    return k == len(policy.thresholds) or any(threshold != math.inf for threshold in compared)


def cover(policies: Sequence[Policy]) -> Policy:
    """Return a policy that needs every head that one of these policies needs: for cutting a network, not for answering."""
    early = range(policies[0].num_exits - 1)
    thresholds = tuple(0.0 if any(needs_head(policy, k) for policy in policies) else math.inf for k in early)
    return Policy(thresholds, USUAL_SCORES[policies[0].task])  # by a score of change, exits before these would join


def score_early_exits(trace: Trace, policy: Policy) -> Tensor:  # -> (N,K-1)
    """Return what is compared with the thresholds at every early exit of every sample: scores, or a gate's estimates."""
    gate, temperatures = policy.gate, policy.temperatures
    if gate is not None:
        given = enumerate(_list_gate_inputs(trace, policy))
        columns = [estimate(gate, k, confidence, support, temperatures[k]) for k, (confidence, support) in given]
    else:
        columns = [score(trace.logits[:, k], policy.score, temperatures[k]) for k in range(trace.num_exits - 1)]
    return torch.stack(columns, 1) if columns else torch.empty(len(trace), 0)


def route(trace: Trace, policy: Policy) -> Tensor:
    """Return the exit that each sample of the trace takes: ``(N,)`` integers in ``[0, K)``.

    Examples:
        >>> xl.route(trace, xl.Policy(thresholds=(0.0, math.inf))).unique()  # 0: always fires at exit 0
        tensor([0])
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(trace.num_exits, trace.network, trace.task)
    policy.check_tiles(trace.tiles)
    return find_first_firing(score_early_exits(trace, policy), policy.thresholds)
