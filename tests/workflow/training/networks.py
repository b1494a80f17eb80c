"""Settings and fresh networks that the tests of training share."""

from __future__ import annotations

import torch
from torch import nn

import exitlens as xl
from tests.conftest import TinyNet

QUICK = {"epochs": 3, "batch_size": 8, "progress": False, "amp": False}


class WithoutStatistics(TinyNet):
    """No batch norm: its result does not depend on how a batch is split."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(classes=classes)
        for stage in (self.a, self.b):
            stage[1] = nn.GroupNorm(2, stage[1].num_features)


def fresh(
    final: str = "head", head: str = "evidence", *, backbone: type[nn.Module] = TinyNet, seed: int = 7, classes: int = 4
) -> xl.ExitNet:
    torch.manual_seed(seed)
    return xl.attach(backbone(classes=classes), ["a", "b"], classes, torch.zeros(1, 3, 16, 16), final=final, head=head)
