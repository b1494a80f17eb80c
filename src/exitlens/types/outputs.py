"""What exits, losses and adaptive inference return."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class ExitOutput(NamedTuple):
    """What one exit says about a batch.

    Attributes:
        logits: ``(B,C)``.
        attention: ``(B,*S)``, non-negative, sums to 1 over the locations ``S``.
        evidence: ``(B,C,*S)``; ``evidence.sum(S) + bias == logits`` where the head is exact (every evidence head is).

    Examples:
        >>> out = net(images)[0]
        >>> out.logits.shape, out.attention.sum((1, 2)).allclose(torch.ones(8))
        (torch.Size([8, 10]), True)
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor


class LossTerms(NamedTuple):
    """Scalars by name: ``total`` is what to call ``backward`` on; the others are detached parts for logging.

    Examples:
        >>> terms = xl.EGTLoss(weight=0.5)(net(images), labels)
        >>> terms.total.requires_grad, terms.classification.requires_grad
        (True, False)
    """

    total: Tensor
    classification: Tensor
    consistency: Tensor
    distillation: Tensor


@dataclass(frozen=True)
class Prediction:
    """Answer of adaptive inference, in the order of the input.

    Attributes:
        labels: ``(B,)`` predicted class; of several labels ``(B,C)`` bool: which of them a sample has.
        exits: ``(B,)`` the exit that answered.
        confidence: ``(B,)`` the score that was compared with the threshold, at the exit that answered, under the policy's
            temperatures; ``Report.calibration_error`` says how far it is from accuracy on your data.
        probabilities: ``(B,C)`` softmax (of several labels sigmoid) of the logits over the exit's temperature.
        attention: per sample the attention map ``S`` of the exit that answered, placed in the image
            (``net.map_offsets``), or ``None`` if it was not asked for.
        index: ``(B,)`` the samples' places in the batch, or in the stream.
        divergence_estimate: ``(B,)`` where the policy has a gate: its estimate of how far the map at the exit that answered
            is from the final exit's (which early answers never see); 0 at the final exit.
        last_divergence: ``(B,)`` where the policy has a gate: how far the last early exit's map was from the final exit's,
            measured on the samples for which the final exit ran; NaN for the others.

    Its tensors were made in inference mode: clone them before using them in autograd.

    Examples:
        >>> pred = xl.predict(net, images, xl.Policy.never(3))
        >>> pred.exits.tolist()  # all at the final exit
        [2, 2, 2, 2, 2, 2, 2, 2]
    """

    labels: Tensor
    exits: Tensor
    confidence: Tensor
    probabilities: Tensor
    attention: tuple[Tensor, ...] | None = None
    index: Tensor | None = None
    divergence_estimate: Tensor | None = None
    last_divergence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def exit_name(k: int, count: int) -> str:
    """``exit 0``, ``exit 1``, ... and ``final``."""
    return "final" if k == count - 1 else f"exit {k}"


def format_threshold(threshold: float, digits: int) -> str:
    """``never`` for an infinite one."""
    return "never" if threshold == math.inf else f"{threshold:.{digits}f}"


def tell_apart(left: float, right: float, digits: int = 3) -> tuple[str, str]:
    """Both numbers, with enough digits (``digits`` to 7) to tell them apart where that is possible."""
    while digits < 7 and left != right and f"{left:.{digits}f}" == f"{right:.{digits}f}":
        digits += 1
    return f"{left:.{digits}f}", f"{right:.{digits}f}"
