"""Classification terms of losses, of one class a sample (cross-entropy) or several labels (binary cross-entropy)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.types import ExitOutput


def classification_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Tensor:  # (B,C), (B,) or (B,C) -> ()
    """Cross-entropy of the softmax, or, for labels ``(B,C)`` of 0 and 1, binary cross-entropy of the sigmoids.

    The mean over samples, and over labels where there are several, so that it does not grow with their number.

    Args:
        logits: of one exit.
        labels: ``(B,)`` integers in ``[0, C)``, or ``(B,C)`` of 0 and 1.
        label_smoothing: share of a label that is spread evenly over all classes (arXiv 1512.00567); of several labels, of
            each over yes and no.
        class_weights: C numbers: a sample counts as its class's says; of several labels, each label as its own says.
    """
    logits = logits.float()
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    if labels.ndim == 2:
        target = labels.float() * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, weight=weights)
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return (each * weights[labels]).mean()


def distillation_loss(outputs: Sequence[ExitOutput], temperature: float = 2.0, several: bool = False) -> Tensor:
    """``T^2/(K-1) sum_k KL(softmax(final/T) ‖ softmax(exit k/T))``, final detached (Be Your Own Teacher, 1905.08094).

    Of ``several`` labels, the mean over these of the divergence of each one's yes and no (sigmoids in place of the softmax).
    """
    if len(outputs) < 2:
        return outputs[0].logits.new_zeros(())
    *students, teacher = (out.logits.float() / temperature for out in outputs)
    if several:
        target = teacher.detach().sigmoid()
        least = F.binary_cross_entropy_with_logits(teacher.detach(), target)
        terms = [F.binary_cross_entropy_with_logits(student, target) - least for student in students]
    else:
        target = teacher.detach().softmax(1)
        terms = [F.kl_div(student.log_softmax(1), target, reduction="batchmean") for student in students]
    return temperature**2 * torch.stack(terms).mean()
