"""Distillation in ``exitlens.fit``: the teacher answers the batch that is trained on, and the loss asks what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import exitlens as xl
from exitlens.functional.losses import distillation_loss
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, map_inputs, set_channels_last

TEMPERATURE, WEIGHT = 2.0, 1.0


class Teacher:
    """A trained network that :func:`exitlens.fit` shows every batch as its student gets it (the argument ``augment``).

    Attributes:
        logits: ``(B,C)``, of the last batch, without gradient.
    """

    def __init__(self, net: xl.ExitNet) -> None:
        self.net = net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.logits: Tensor | None = None

    def __call__(self, inputs: Inputs) -> Inputs:
        """Answers a batch in float32 and gives it back as it is."""
        with torch.no_grad():
            self.logits = self.net(map_inputs(inputs, set_channels_last))[-1].logits
        return inputs


def make_loss(teacher: Teacher) -> xl.EGTLoss:
    """Cross-entropy plus ``T^2 KL(teacher ‖ student)`` at temperature T (Hinton et al. 2015, arXiv 1503.02531)."""

    @dataclass(frozen=True)
    class DistilledLoss(xl.EGTLoss):  # the teacher is no field: a run records all fields of its loss as JSON
        temperature: float = TEMPERATURE
        teacher_weight: float = WEIGHT

        def __call__(
            self,
            outputs: Sequence[ExitOutput],
            labels: Tensor,
            progress: float = 1.0,
            features: Sequence[Tensor] | None = None,
            relevance: Tensor | None = None,
        ) -> LossTerms:
            terms = super().__call__(outputs, labels, progress, features, relevance)
            assert teacher.logits is not None
            pair = (outputs[-1], outputs[-1]._replace(logits=teacher.logits))
            term = distillation_loss(pair, self.temperature)
            return terms._replace(total=terms.total + self.teacher_weight * term, distillation=term.detach())

    return DistilledLoss(weight=0.0)
