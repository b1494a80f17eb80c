"""Quality of answers and confidences: calibration error, risk-coverage, overthinking, F1."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:  # (N,), (N,) 0 or 1
    """Mean gap between confidence and accuracy over ``bins`` equal-width bins (arXiv 1706.04599, eq. 3), in [0, 1]."""
    place = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.bincount(place, weights=confidence - correct, minlength=bins).abs()
    return (gap.sum() / len(correct)).item()


def risk_coverage(confidence: Tensor, correct: Tensor) -> Tensor:  # (N,), (N,) -> (N,)
    """Error rate among the ``n`` most confident samples, for n = 1 … N (selective classification, arXiv 1705.08500).

    Samples of equal confidence are answered together: within a tie the errors are spread evenly.
    """
    order = confidence.argsort(descending=True, stable=True)
    ranked, wrong = confidence[order], 1 - correct[order].double()
    _, group, counts = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    share = torch.zeros(len(counts), dtype=torch.float64, device=wrong.device).index_add_(0, group, wrong) / counts
    errors: Tensor = share[group].cumsum(0)
    return errors / torch.arange(1, len(wrong) + 1, device=wrong.device)


def micro_f1(answers: Tensor, labels: Tensor) -> float:  # (N,C) bool each
    """``2 TP / (2 TP + FP + FN)``, counted over all samples and labels together; 1 where nothing is told or there."""
    told, there = int(answers.sum()), int(labels.sum())
    return 2 * int((answers & labels).sum()) / (told + there) if told + there else 1.0


def overthinking(correct: Tensor) -> tuple[float, float]:  # (N,K) bool
    """Shares of samples that are right early and then go on (arXiv 1810.07052, section 3): ``(wasteful, destructive)``.

    Wasteful: the final exit is right, too. Destructive: it is wrong.
    """
    if correct.shape[1] < 2:
        return 0.0, 0.0
    early, final = correct[:, :-1].bool().any(1), correct[:, -1].bool()
    return (early & final).double().mean().item(), (early & ~final).double().mean().item()
