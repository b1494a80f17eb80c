"""Confidence scores of one exit, all in [0, 1] with 1 certain, and the temperature that calibrates it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.compact import compute_probabilities, fix_likelihood, score_compact
from exitlens.functional.pixels import score_pixels
from exitlens.types import Trace
from exitlens.types.settings import ALL_SCORES, DECIDED, PIXEL_SCORES
from exitlens.types.tasks import CONTINUOUS, SCORES_OF, find_class_axis, split_answers, task_of_score
from exitlens.types.traces import AnswerSummary, CompactLogits, Logits, PixelSummary


def score(logits: Logits, kind: str = "max_probability", temperature: float = 1.0) -> Tensor:  # (B,C) -> (B,)
    """Return an exit's certainty, from its logits divided by ``temperature`` (see :func:`score_of`)."""
    if isinstance(logits, CompactLogits):
        return score_compact(logits, kind, temperature)
    if isinstance(logits, PixelSummary | AnswerSummary):
        if temperature != 1.0:
            raise InputError(f"temperatures: expected 1 where logits are not kept, got {temperature:g}. Fix: leave them out")
        return logits.scores[..., SCORES_OF[task_of_score(kind)].index(kind)]
    return score_of(probabilities(logits, temperature, kind), kind)


def probabilities(logits: Tensor, temperature: float | Tensor = 1.0, kind: str = "max_probability") -> Tensor:
    """Return the softmax of ``logits / temperature`` in float32; for the score ``decided``, the sigmoid.

    For the scores of pixels, the classes are the third axis from the end. For those of numbers and vectors, it returns the
    logits, which end with the expected error.
    """
    logits = logits.float()
    if task_of_score(kind) in CONTINUOUS:
        return logits
    if not isinstance(temperature, float) or temperature != 1.0:
        logits = logits / temperature
    return logits.sigmoid() if kind == DECIDED else logits.softmax(find_class_axis(task_of_score(kind)))


def score_of(p: Tensor, kind: str) -> Tensor:  # (...,C), of pixels (...,C,h,w) -> (...)
    """Return ``max_probability``; ``entropy``: 1 - H(p)/ln C; ``margin``: largest minus second largest probability.

    ``decided``, for several labels: the smallest of max(p, 1 - p), in [1/2, 1]. For those of pixels see
    :func:`~exitlens.functional.pixels.score_pixels`; for those of numbers and vectors exp(-error).
    """
    if task_of_score(kind) in CONTINUOUS:
        return (-split_answers(p)[1]).exp()
    if kind in PIXEL_SCORES:
        return score_pixels(p, kind)
    if kind == "max_probability":
        return p.amax(-1)
    if kind == "entropy":
        nats: Tensor = torch.special.xlogy(p, p).sum(-1)
        return (1 + nats / math.log(p.shape[-1])).clamp_min(0)
    if kind == "margin":
        first, second = p.topk(2, -1).values.unbind(-1)
        return first - second
    if kind == DECIDED:
        return torch.maximum(p, 1 - p).amin(-1)
    raise InputError(f"score: expected one of {ALL_SCORES}, got {kind!r}")


class Rating(NamedTuple):
    """Quality of the probabilities of samples with labels; with several labels each counts, so there are N times C rows."""

    confidence: Tensor  # (N,) the largest probability (of a label: max(p, 1 - p))
    correct: Tensor  # (N,) 1 if the answer is right, else 0
    squared_error: Tensor  # (N,) squared distance of the probabilities from the one-hot label, in [0, 2]; of a label [0, 1]


def rate_probabilities(logits: Tensor | CompactLogits, labels: Tensor, temperature: float) -> Rating:  # (N,C), (N,) or (N,C)
    """Rate probabilities for calibration error, Brier score and (of one class per sample) risk-coverage."""
    if isinstance(logits, CompactLogits):
        confidence, of_label, square = compute_probabilities(logits, temperature)
        return Rating(confidence, (logits.argmax() == labels).float(), square - 2 * of_label + 1)
    if labels.ndim == 2:
        each, truth = probabilities(logits, temperature, DECIDED).flatten(), labels.flatten()
        right = (each >= 0.5) == truth.bool()
        return Rating(torch.maximum(each, 1 - each), right.float(), (each - truth.float()).square())
    p = probabilities(logits, temperature)
    confidence, answer = p.max(1)
    target = torch.zeros_like(p).scatter_(1, labels[:, None], 1.0)
    return Rating(confidence, (answer == labels).float(), (p - target).square().sum(1))


def routed_calibration_error(trace: Trace, temperatures: Sequence[float], exits: Tensor) -> float:  # (N,)
    """Return the expected calibration error of the answers (with several labels, of each) at the exits taken."""
    labels = trace.require_labels("the calibration error")
    parts = [
        rate_probabilities(trace.class_logits[exits == k, k], labels[exits == k], t)
        for k, t in enumerate(temperatures)
        if (exits == k).any()
    ]
    return expected_calibration_error(torch.cat([part.confidence for part in parts]), torch.cat([p.correct for p in parts]))


def fit_temperatures(
    logits: Tensor | CompactLogits, labels: Tensor, rows: Tensor
) -> tuple[float, ...]:  # (N,K,C), (N,) or (N,C), (n,)
    """Fit a temperature to every exit on the samples at ``rows``."""
    return tuple(fit_temperature(logits[rows, k], labels[rows]) for k in range(logits.shape[1]))


def fit_temperature(logits: Tensor | CompactLogits, labels: Tensor) -> float:
    """Return the temperature in [0.05, 20] of least negative log-likelihood (arXiv 1706.04599).

    With several labels, ``(N,C)`` of 0 and 1, the loss is the mean binary cross-entropy of the sigmoids.
    """
    if isinstance(logits, CompactLogits):
        loss = fix_likelihood(logits)
    else:
        full, several = logits.double(), labels.ndim == 2
        entropy, truth = (F.binary_cross_entropy_with_logits, labels.double()) if several else (F.cross_entropy, labels)

        def loss(temperature: float) -> float:
            return entropy(full / temperature, truth).item()

    low, high = 0.05, 20.0
    minimum = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-5}
    )
    return low if loss(low) <= minimum.fun else math.exp(minimum.x)  # of separable data a whole range has no loss


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:  # (N,), (N,) 0 or 1
    """Return the mean gap between confidence and accuracy over equal-width ``bins``, in [0, 1] (arXiv 1706.04599, eq. 3)."""
    place = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.bincount(place, weights=confidence - correct, minlength=bins).abs()
    return (gap.sum() / len(correct)).item()


def risk_coverage(confidence: Tensor, correct: Tensor) -> Tensor:  # (N,), (N,) -> (N,)
    """Return error rates of the n most confident samples, n = 1 … N (arXiv 1705.08500), even within ties."""
    order = confidence.argsort(descending=True, stable=True)
    ranked, wrong = confidence[order], 1 - correct[order].double()
    _, group, counts = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    share = torch.zeros(len(counts), dtype=torch.float64, device=wrong.device).index_add_(0, group, wrong) / counts
    errors: Tensor = share[group].cumsum(0)
    return errors / torch.arange(1, len(wrong) + 1, device=wrong.device)


def micro_f1(answers: Tensor, labels: Tensor) -> float:  # (N,C) bool each
    """Return ``2 TP / (2 TP + FP + FN)`` over all samples and labels together; 1 if no label is told or true."""
    told, there = int(answers.sum()), int(labels.sum())
    return 2 * int((answers & labels).sum()) / (told + there) if told + there else 1.0


def rank_area(scores: Tensor, positive: Tensor) -> float | None:  # (N,), (N,) bool
    """Return the area under the ROC curve: the chance that a positive sample scores higher (ties: half)."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    return ((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count))).item()


def find_oracle_curve(correct: Tensor, cost: Tensor) -> tuple[tuple[float, float], ...]:  # (N,K) bool, (K,)
    """Return cost and accuracy if every sample left at its first right exit, or at exit 0 if that is none up to exit k."""
    first, points = correct.bool().int().argmax(1), []
    for k in range(correct.shape[1]):
        exits = torch.where(first <= k, first, 0)
        points.append((cost[exits].double().mean().item(), correct.gather(1, exits[:, None]).double().mean().item()))
    return tuple(points)


def overthinking(correct: Tensor) -> tuple[float, float]:  # (N,K) bool
    """Return shares of samples that are right early, and at the end right (wasteful) or wrong (destructive; 1810.07052)."""
    if correct.shape[1] < 2:
        return 0.0, 0.0
    early, final = correct[:, :-1].bool().any(1), correct[:, -1].bool()
    return (early & final).double().mean().item(), (early & ~final).double().mean().item()
