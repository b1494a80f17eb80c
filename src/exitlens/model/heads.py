"""Exit heads: class evidence per location, pooled by a learned attention, so that the map is what the answer used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exitlens.types import ExitOutput


class EvidenceHead(nn.Module):
    """``logit[c] = sum_i a[i] * (w_c . f_i) + b_c`` with ``a = softmax_i(u . f_i)`` (design, section 3).

    The logits are computed as ``W (sum_i a[i] f_i) + b``, which is the same by linearity and does not build the
    ``(B,C,*S)`` evidence; that is made only for those who ask for it. Attention pooling as a classifier head follows
    attention-based multiple-instance learning (arXiv 1802.04712, eq. 8, without the gating tanh).

    Args:
        channels: ``D`` of the features ``(B,D,*S)``.
        num_classes: ``C``.
    """

    exact_evidence = True

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, num_classes)
        self.attend = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(B,D,*S)`` -> logits ``(B,C)``, attention ``(B,N)``, features ``(B,D,N)``."""
        flat = features.flatten(2)  # (B,D,N)
        attention = (self.attend.weight @ flat).float().softmax(-1)  # (B,1,N)
        pooled = (flat @ attention.to(flat.dtype).transpose(1, 2)).squeeze(2)  # (B,D)
        return self.classifier(pooled), attention.squeeze(1), flat

    def classify(self, features: Tensor) -> Tensor:
        """Only the logits ``(B,C)``: the cheap path of adaptive inference."""
        return self.pool(features)[0]

    def forward(self, features: Tensor) -> ExitOutput:
        """Features ``(B,D,*S)`` -> logits, attention and evidence."""
        logits, attention, flat = self.pool(features)
        evidence = (self.classifier.weight @ flat) * attention[:, None]  # (B,C,N)
        grid = features.shape[2:]
        return ExitOutput(logits, attention.unflatten(1, grid), evidence.unflatten(2, grid))
