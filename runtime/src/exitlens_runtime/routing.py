"""Policies and maps in NumPy: the rule of ``exitlens.functional.routing``, which a test compares it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from exitlens_runtime.errors import PolicyError

Array = np.ndarray[Any, np.dtype[Any]]
SCORES = ("max_probability", "entropy", "margin")
DECIDED = "decided"  # the score of networks that give several labels: probabilities are sigmoids
_EPS = np.float32(1e-12)


@dataclass(frozen=True)
class Gate:
    """Decides which maps of early exits are trusted, by a linear estimate of their divergence from the final map."""

    # for each early exit, weights of confidence, entropy of the map, its change since the previous exit, and 1
    weights: tuple[tuple[float, ...], ...]
    limits: tuple[float, ...]  # largest estimates that are trusted; infinite: any


@dataclass(frozen=True)
class Policy:
    """Decides when early exits answer: exit k fires at ``score >= thresholds[k]``; the final exit always answers."""

    thresholds: tuple[float, ...]  # K-1 numbers; infinite: never
    score: str  # one of SCORES, or DECIDED
    temperatures: tuple[float, ...]  # K positive numbers
    network: str = ""  # fingerprint of the network it was chosen for; empty fits any
    gate: Gate | None = None  # decides which maps are trusted

    def __post_init__(self) -> None:
        count, gate = len(self.thresholds), self.gate
        if self.score not in (*SCORES, DECIDED):
            raise PolicyError(f"policy: expected a score among {(*SCORES, DECIDED)}, got {self.score!r}")
        if len(self.temperatures) != count + 1 or not all(0 < t < math.inf for t in self.temperatures):
            raise PolicyError(f"policy: expected {count + 1} positive temperatures, got {self.temperatures}")
        if any(math.isnan(t) or t == -math.inf for t in self.thresholds):
            raise PolicyError(f"policy: expected thresholds that are numbers, got {self.thresholds}")
        if gate and not (len(gate.limits) == len(gate.weights) == count and all(len(w) == 4 for w in gate.weights)):
            raise PolicyError(f"policy: expected a gate with 4 weights and a limit for each of {count} early exits")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Read the values of ``exitlens.Policy.to_dict``; raise :class:`PolicyError` for anything else."""
        try:
            gate, given = None, values.get("gate")
            if given is not None:
                limits = tuple(math.inf if t == "none" else float(t) for t in given["limits"])
                gate = Gate(tuple(tuple(map(float, row)) for row in given["weights"]), limits)
            return cls(
                tuple(math.inf if t == "never" else float(t) for t in values["thresholds"]),
                str(values["score"]),
                tuple(map(float, values["temperatures"])),
                str(values.get("network", "")),
                gate,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"policy: expected what exitlens wrote as policy.json, got {error!r}") from error

    def shift(self, by: float) -> Policy:
        """Return a policy with thresholds raised, and limits lowered, by ``by``: below 0 it answers earlier."""
        gate = None if self.gate is None else Gate(self.gate.weights, tuple(limit - by for limit in self.gate.limits))
        return replace(self, thresholds=tuple(t + by for t in self.thresholds), gate=gate)

    def needs(self, k: int) -> bool:
        """Return whether the head of exit k is computed: it can fire, or the gate of a later exit needs its map."""
        if k == len(self.thresholds):
            return True
        later = self.thresholds[k : k + 1] if self.gate is None else self.thresholds[k:]
        return any(t != math.inf for t in later)


class Decision(NamedTuple):
    """Decision of an early exit about each sample of a batch."""

    scores: Array  # (B,)
    fired: Array  # (B,) bool: the samples it answers; a map that the gate does not trust counts as a score of 0
    estimates: Array | None  # (B,) of the map's divergence from the final one; None without a gate


def decide(policy: Policy, k: int, p: Array, attention: Array, previous: Array | None) -> Decision:
    """Decide at early exit k from probabilities ``(B,C)``, its map ``(B,*S)`` and the previous exit's map."""
    scores, estimates, gate = find_score(p, policy.score), None, policy.gate
    trusted = scores
    if gate is not None:
        entropy, change = find_gate_features(attention, previous)
        weights = [np.float32(w) for w in gate.weights[k]]
        confidence = scores if policy.score == DECIDED else p.max(1)
        estimates = np.clip(weights[0] * confidence + weights[1] * entropy + weights[2] * change + weights[3], 0, 1)
        trusted = np.where(estimates <= np.float32(gate.limits[k]), scores, np.float32(0))
    return Decision(scores, trusted >= np.float32(policy.thresholds[k]), estimates)


def find_probabilities(logits: Array, temperature: float, kind: str = SCORES[0]) -> Array:  # (B,C) -> (B,C)
    """Return the softmax of ``logits / temperature`` in float32; for ``decided`` (several labels), the sigmoid."""
    x = logits.astype(np.float32, copy=False)
    if temperature != 1.0:
        x = x / np.float32(temperature)
    if kind == DECIDED:
        powers: Array = np.exp(-np.abs(x))
        return np.where(x >= 0, 1, powers) / (1 + powers)  # type: ignore[no-any-return]
    powers = np.exp(x - np.maximum.reduce(x, -1, keepdims=True))  # methods of arrays take twice as long as ufuncs
    powers /= np.add.reduce(powers, -1, keepdims=True)
    return powers


def find_score(p: Array, kind: str) -> Array:  # (B,C) -> (B,)
    """Return the score of each sample.

    ``max_probability``; ``entropy``: 1 - H(p)/ln C; ``margin``: largest minus second largest probability; ``decided`` (for
    several labels): the smallest of max(p, 1 - p).
    """
    if kind == "max_probability":
        return np.maximum.reduce(p, -1)  # type: ignore[no-any-return]
    if kind == "entropy":
        nats = (p * np.log(np.where(p > 0, p, 1))).sum(-1)
        return np.maximum(1 + nats / np.float32(math.log(p.shape[-1])), 0)  # type: ignore[no-any-return]
    if kind == DECIDED:
        return np.minimum.reduce(np.maximum(p, 1 - p), -1)  # type: ignore[no-any-return]
    two = np.partition(p, -2, axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0]  # type: ignore[no-any-return]


def find_gate_features(attention: Array, previous: Array | None) -> tuple[Array, Array]:  # (B,*S), (B,*S') -> (B,), (B,)
    """Return each map's entropy over a uniform map's, and its divergence from the previous exit's (0 at the first)."""
    flat = attention.reshape(len(attention), -1).astype(np.float32, copy=False)
    entropy = -(flat * np.log(np.where(flat > 0, flat, 1))).sum(1) / math.log(max(flat.shape[1], 2))
    change = np.zeros_like(entropy) if previous is None else find_divergence(previous, attention)
    return entropy.astype(np.float32), change.astype(np.float32)


def find_divergence(a: Array, b: Array) -> Array:  # (B,*S), (B,*S') -> (B,)
    """Return the Jensen-Shannon divergence over ln 2 of two batches of maps, on the coarser of their grids (per axis)."""
    size = tuple(min(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
    p, q = (_normalise(regrid(x, size)) for x in (a, b))
    middle = (p + q) / 2
    return np.clip((_find_kl(p, middle) + _find_kl(q, middle)) / np.float32(2 * math.log(2)), 0, 1)


def _normalise(x: Array) -> Array:  # (B,*S) -> (B,S)
    flat = np.maximum(x.reshape(len(x), -1), 0)
    total = flat.sum(1, keepdims=True)
    return np.where(total > _EPS, flat / np.maximum(total, _EPS), np.full_like(flat, 1 / flat.shape[1]))


def _find_kl(p: Array, q: Array) -> Array:
    terms = p * np.log(np.maximum(p, _EPS)) - p * np.log(np.maximum(q, _EPS))
    return np.maximum(terms.sum(1), 0)  # type: ignore[no-any-return]


def regrid(x: Array, size: Sequence[int]) -> Array:  # (B,*S) -> (B,*size)
    """Average maps over the areas of a coarser grid, as PyTorch's adaptive average pooling does."""
    x = x.astype(np.float32, copy=False)
    for axis, new in enumerate(size, 1):
        old = x.shape[axis]
        if new == old:
            continue
        share = np.zeros((old, new), np.float32)
        for i in range(new):
            low, high = i * old // new, -((-(i + 1) * old) // new)
            share[low:high, i] = 1 / (high - low)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ share, -1, axis)
    return x


def place(x: Array, offset: Sequence[float]) -> Array:  # (...,*S) -> (...,*S)
    """Move maps by a fraction of a cell along their last axes to where their locations lie in the image.

    As in ``exitlens.functional.maps.place``, mass that would leave the map stays in its edge cells.
    """
    for axis, by in enumerate(offset, x.ndim - len(offset)):
        if by:
            cells = np.arange(x.shape[axis])
            goal = np.clip(cells + by, 0, len(cells) - 1)
            shift = np.maximum(1 - np.abs(goal[:, None] - cells), 0).astype(x.dtype)  # rows sum to 1
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ shift, -1, axis)
    return x
