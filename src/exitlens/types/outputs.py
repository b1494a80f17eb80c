"""The outputs of exits, losses and adaptive inference, and their form in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor


class ExitOutput(NamedTuple):
    """One exit's output for a batch.

    Attributes:
        logits: ``(B,C)``.
        attention: ``(B,*S)``, non-negative, sums to 1 over the locations ``S``.
        evidence: ``(B,C,*S)``; ``evidence.sum(S) + bias == logits`` if the head is exact (every evidence head is).

    Of a network that answers one class a pixel, logits are ``(B,C,H,W)``, of the size of the images. Evidence is the logits
    on the exit's own grid ``(B,C,h,w)``, and attention the mean of the softmax over locations of the classes that it tells.

    Where answers are numbers or vectors, logits are ``(B,C+1)``: the numbers, less their means and in spreads of the
    training data (``net.info.units``), or the vector; then the error that the exit expects (of vectors, the distance from
    the final exit's). Evidence is of the numbers alone; of vectors there is none, ``(B,0,*S)``.

    Examples:
        >>> out = net(images)[0]
        >>> out.logits.shape, out.attention.sum((1, 2)).allclose(torch.ones(8))
        (torch.Size([8, 10]), True)
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor


class LossTerms(NamedTuple):
    """Scalars by name: call ``backward`` on ``total``; the others are detached parts for logging."""

    total: Tensor
    classification: Tensor
    consistency: Tensor
    distillation: Tensor


@dataclass(frozen=True)
class Prediction:
    """Answers of adaptive inference, in the order of the inputs.

    Attributes:
        labels: ``(B,)`` predicted class; with several labels per sample ``(B,C)`` bool; of each pixel ``(B,H,W)``. Where
            answers are numbers, these, in the units of the training targets: floats ``(B,)`` if there is one a sample, else
            ``(B,C)``; where they are vectors, floats ``(B,D)``.
        exits: ``(B,)`` the exit that answered.
        confidence: ``(B,)`` the policy's score at the exit that answered, compared with the threshold if there is no gate;
            ``Report.calibration_error`` says how far it is from accuracy on your data.
        probabilities: ``(B,C)`` softmax (with several labels sigmoid) of the logits over the exit's temperature; of each
            pixel ``(B,C,H,W)``. Empty, ``(B,0)``, for numbers and vectors.
        attention: per sample the attention map ``S`` of the exit that answered, placed in the image
            (``net.map_offsets``), or ``None`` if it was not asked for.
        index: ``(B,)`` the samples' places in the batch, or in the stream.
        trust: ``(B,)`` the gate's estimate that the final exit would answer the same (under a limit on divergence, that its
            map is near, too); 1 at the final exit. ``None`` without a gate.
        refused: ``(B,)`` the first exit whose answer was sure enough by its confidence and refused by the gate; -1: none.
            ``None`` without a gate.
        tile_exits: ``(B,rows,columns)`` the exit that answered each tile; ``exits`` is then the last of them, and
            ``confidence`` the least sure tile's. ``None`` without tiles.

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
    trust: Tensor | None = None
    refused: Tensor | None = None
    tile_exits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def exit_name(k: int, count: int) -> str:
    """Return ``exit 0``, ``exit 1``, ... or ``final``."""
    return "final" if k == count - 1 else f"exit {k}"


def format_threshold(threshold: float, digits: int) -> str:
    """Return the number, or ``never`` if it is infinite."""
    return "never" if threshold == math.inf else f"{threshold:.{digits}f}"


def tell_apart(left: float, right: float, digits: int = 3) -> tuple[str, str]:
    """Format both numbers with enough digits (``digits`` to 7) to tell them apart if that is possible."""
    while digits < 7 and left != right and f"{left:.{digits}f}" == f"{right:.{digits}f}":
        digits += 1
    return f"{left:.{digits}f}", f"{right:.{digits}f}"


@dataclass(frozen=True)
class ExitCandidate:
    """A place for an exit.

    Attributes:
        name: the module that it follows, as passed in ``at``.
        macs: multiply-accumulates of one sample up to there.
        cost: the same as a fraction of the whole backbone's.
        shape: the features' shape for the example's size, without the batch axis.
        time_share: the measured share of the backbone's time up to there, in [0, 1].

    Examples:
        >>> point = xl.list_exit_candidates("small", images[:1], runs=1)[0]
        >>> point.name, point.shape, 0 < point.cost < 1
        ('stem.0', (32, 20, 20), True)
    """

    name: str
    macs: int
    cost: float
    shape: tuple[int, ...]
    time_share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
