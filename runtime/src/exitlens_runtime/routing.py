"""Policies and maps in NumPy: the rule of ``exitlens.functional.routing``, which a test compares it with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from exitlens_runtime.errors import PolicyError

Array = np.ndarray[Any, np.dtype[Any]]
SCORES = ("max_probability", "entropy", "margin")
DECIDED = "decided"  # the score of networks that give several labels: probabilities are sigmoids
# the scores of networks that give one class a pixel, of the largest probability in each cell: its mean, the value that nine
# tenths of them reach, and the share of those of 0.9 or more
PIXEL_SCORES = ("mean_probability", "low_probability", "sure_share")
# of numbers, and of vectors: exp(-error), as the head expects it, and exp(-distance) from the answer of the exit before
NUMBER_SCORES, VECTOR_SCORES = ("closeness", "stability"), ("vector_closeness", "vector_stability")
CHANGE_SCORES, ANSWER_SCORES = (NUMBER_SCORES[1], VECTOR_SCORES[1]), (*NUMBER_SCORES, *VECTOR_SCORES)
SCORES_OF = {
    "classes": SCORES,
    "multilabel": (DECIDED,),
    "segmentation": PIXEL_SCORES,
    "regression": NUMBER_SCORES,
    "embedding": VECTOR_SCORES,
}
ALL_SCORES = tuple(score for scores in SCORES_OF.values() for score in scores)
UNKNOWN, TINY = 1e4, 1e-8  # the distance of exit 0's answer from one before, and the least norm
SURE, LOW = 0.9, 0.1
WEIGHTS = 5  # of a gate at an exit


@dataclass(frozen=True)
class Gate:
    """Estimates, for early answers, the chance that the final exit answers the same."""

    # for each early exit, weights of the confidence's odds, the margin without a tenth of the locations, the share of the
    # map that supports the answer, the map's entropy, and 1
    weights: tuple[tuple[float, ...], ...]
    confidences: tuple[float, ...] = ()  # scores from which on as many would leave without it; empty: not known


@dataclass(frozen=True)
class Policy:
    """Decides when early exits answer: exit k fires at ``score >= thresholds[k]``; the final exit always answers."""

    thresholds: tuple[float, ...]  # K-1 numbers; infinite: never
    score: str  # one of ALL_SCORES
    temperatures: tuple[float, ...]  # K positive numbers
    network: str = ""  # fingerprint of the network it was chosen for; empty fits any
    gate: Gate | None = None  # its estimates are compared with the thresholds, in place of the score
    binding: Mapping[str, Any] | None = None  # what certify_binding promised, as it wrote it

    def __post_init__(self) -> None:
        count, gate = len(self.thresholds), self.gate
        if self.score not in ALL_SCORES:
            raise PolicyError(f"policy: expected a score among {ALL_SCORES}, got {self.score!r}")
        if len(self.temperatures) != count + 1 or not all(0 < t < math.inf for t in self.temperatures):
            raise PolicyError(f"policy: expected {count + 1} positive temperatures, got {self.temperatures}")
        if any(math.isnan(t) or t == -math.inf for t in self.thresholds):
            raise PolicyError(f"policy: expected thresholds that are numbers, got {self.thresholds}")
        if gate and not (len(gate.weights) == count and all(len(w) == WEIGHTS for w in gate.weights)):
            raise PolicyError(f"policy: expected a gate with {WEIGHTS} weights for each of {count} early exits")
        if gate and len(gate.confidences) not in (0, count):
            raise PolicyError(f"policy: expected a gate with a confidence for each of {count} early exits, or none")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Read the values of ``exitlens.Policy.to_dict``; raise :class:`PolicyError` for anything else."""
        try:
            gate, given = None, values.get("gate")
            if given is not None:
                levels = tuple(math.inf if t == "never" else float(t) for t in given.get("confidences", ()))
                gate = Gate(tuple(tuple(map(float, row)) for row in given["weights"]), levels)
            policy = cls(
                tuple(math.inf if t == "never" else float(t) for t in values["thresholds"]),
                str(values["score"]),
                tuple(map(float, values["temperatures"])),
                str(values.get("network", "")),
                gate,
                values.get("binding"),
            )
            for k in range(len(policy.temperatures)):
                policy.describe_binding(k)  # else a damaged number would stop an answer
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise PolicyError(
                f"policy: expected what exitlens wrote as policy.json, got {error!r}. Fix: export the network again."
            ) from error
        return policy

    def shift(self, by: float) -> Policy:
        """Return a policy with thresholds raised by ``by``: below 0 it answers earlier."""
        return replace(self, thresholds=tuple(t + by for t in self.thresholds))

    def rule_hash(self) -> str:
        """Return the library's hash of everything that decides."""
        values = {name: value for name, value in asdict(self).items() if name != "binding"}
        written = json.dumps(values, sort_keys=True).replace("Infinity", '"never"')
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def describe_binding(self, k: int) -> str:
        """Return what was promised of the maps of answers at exit k; empty if nothing was of this very policy."""
        if self.binding is None or self.binding["rule"] != self.rule_hash():
            return ""
        shown, share, sure = self.binding["shown"], self.binding["share"], 1 - self.binding["delta"]
        count, seen = self.binding["by_exit"][k]
        known = "" if seen is None else f"; seen at this exit: {100 * seen:.0f} % of {count:,}"
        return (
            f"The top {100 * shown:.3g} % of a map decides at least {math.floor(100 * share)} % of the answers "
            f"({100 * sure:.4g} % confidence{known})."
        )

    def needs(self, k: int) -> bool:
        """Return whether the head of exit k is computed: it is final, or can fire, or the next can by the change since."""
        compared = self.thresholds[k : k + 1 + (self.score in CHANGE_SCORES)]
        return k == len(self.thresholds) or any(threshold != math.inf for threshold in compared)


class Decision(NamedTuple):
    """Decision of an early exit about each sample of a batch."""

    scores: Array  # (B,)
    fired: Array  # (B,) bool: the samples it answers
    estimates: Array | None = None  # (B,) of the chance that the final exit answers the same; None without a gate
    refused: Array | None = None  # (B,) bool: sure enough by their score, and refused by the gate; None: not known


def decide(policy: Policy, k: int, p: Array, support: Array) -> Decision:  # (B,C), (B,3)
    """Decide at early exit k from probabilities and what supports the answers."""
    scores, threshold, gate = find_score(p, policy.score), np.float32(policy.thresholds[k]), policy.gate
    if gate is None:
        return Decision(scores, scores >= threshold)
    confidence = scores if policy.score in (DECIDED, SCORES[0]) else p.max(1)
    odds = np.clip(confidence, np.float32(1e-6), np.float32(1 - 1e-6))
    margin, *rest = support.T
    features = [np.log(odds / (1 - odds)), margin / np.float32(policy.temperatures[k]), *rest]
    *weights, constant = (np.float32(weight) for weight in gate.weights[k])
    total = np.stack(features, 1).astype(np.float32) @ np.array(weights) + constant
    estimates = 1 / (1 + np.exp(-total))
    fired = estimates >= threshold
    if not gate.confidences or threshold == math.inf:  # what never answers refuses nothing
        return Decision(scores, fired, estimates)
    return Decision(scores, fired, estimates, (scores >= np.float32(gate.confidences[k])) & ~fired)


def find_probabilities(logits: Array, temperature: float, kind: str = SCORES[0]) -> Array:  # (B,C) -> (B,C)
    """Return the softmax of ``logits / temperature`` in float32; for ``decided`` (several labels), the sigmoid.

    For the scores of pixels, the classes are the third axis from the end. For those of numbers and vectors, it returns the
    logits, which end with the expected error.
    """
    x = logits.astype(np.float32, copy=False)
    if kind in ANSWER_SCORES:
        return x
    if temperature != 1.0:
        x = x / np.float32(temperature)
    if kind == DECIDED:
        powers: Array = np.exp(-np.abs(x))
        return np.where(x >= 0, 1, powers) / (1 + powers)  # type: ignore[no-any-return]
    axis = -3 if kind in PIXEL_SCORES else -1
    powers = np.exp(x - np.maximum.reduce(x, axis, keepdims=True))  # methods of arrays take twice as long as ufuncs
    powers /= np.add.reduce(powers, axis, keepdims=True)
    return powers


def find_score(p: Array, kind: str) -> Array:  # (B,C), of pixels (B,C,h,w) -> (B,)
    """Return the score of each sample.

    ``max_probability``; ``entropy``: 1 - H(p)/ln C; ``margin``: largest minus second largest probability; ``decided`` (for
    several labels): the smallest of max(p, 1 - p). For those of pixels see :data:`PIXEL_SCORES`; for those of numbers and
    vectors exp(-error).
    """
    if kind in ANSWER_SCORES:
        return np.exp(-p[..., -1])
    if kind == "max_probability":
        return np.maximum.reduce(p, -1)  # type: ignore[no-any-return]
    if kind == "entropy":
        nats = (p * np.log(np.where(p > 0, p, 1))).sum(-1)
        return np.maximum(1 + nats / np.float32(math.log(p.shape[-1])), 0)  # type: ignore[no-any-return]
    if kind == DECIDED:
        return np.minimum.reduce(np.maximum(p, 1 - p), -1)  # type: ignore[no-any-return]
    if kind in PIXEL_SCORES:
        return _score_cells(np.maximum.reduce(p, -3).reshape(len(p), -1), kind)
    two = np.partition(p, -2, axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0]  # type: ignore[no-any-return]


def compare_with(p: Array, previous: Array | None, kind: str) -> Array:  # (B,C+1) each -> (B,C+1)
    """Put the distance from the answer of the exit before in place of the expected error, for the scores of stability."""
    answers, distance = p[:, :-1], np.full(len(p), UNKNOWN, np.float32)
    if previous is not None:
        others = previous[:, :-1]
        if kind in NUMBER_SCORES:
            distance = np.abs(answers - others).mean(1)
        else:
            norms = (np.maximum(np.linalg.norm(x, axis=1), TINY) for x in (answers, others))
            distance = np.maximum(1 - (answers * others).sum(1) / np.prod([*norms], 0), 0)
    return np.concatenate([answers, distance[:, None]], 1)


def _score_cells(top: Array, kind: str) -> Array:  # (B,N) -> (B,)
    if kind == "mean_probability":
        return top.mean(1)  # type: ignore[no-any-return]
    if kind == "sure_share":
        return (top >= np.float32(SURE)).mean(1, dtype=np.float32)  # type: ignore[no-any-return]
    place = int(LOW * (top.shape[1] - 1))
    return np.partition(top, place, axis=1)[:, place]


def enlarge(x: Array, size: Sequence[int]) -> Array:  # (...,h,w) -> (...,H,W)
    """Return maps at another size, linearly about the centres of cells, as ``exitlens.functional.pixels`` does."""
    if x.shape[-2:] == tuple(size):
        return x
    rows, columns = (_weigh_cells(old, new) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ (x @ columns.T)  # type: ignore[no-any-return]


def _weigh_cells(old: int, new: int) -> Array:  # -> (new,old)
    """Return what each old cell adds to each new one along an axis: rows sum to 1."""
    goal = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(goal[:, None] - np.arange(old)), 0).astype(np.float32)  # type: ignore[no-any-return]


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
