"""Settings and fresh networks that the tests of training share."""

from __future__ import annotations

import copy
from functools import cache

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


@cache
def _build(final: str, head: str, backbone: type[nn.Module], seed: int, classes: int) -> xl.ExitNet:
    torch.manual_seed(seed)
    return xl.attach(backbone(classes=classes), ["a", "b"], classes, torch.zeros(1, 3, 16, 16), final=final, head=head)


def fresh(
    final: str = "head", head: str = "evidence", *, backbone: type[nn.Module] = TinyNet, seed: int = 7, classes: int = 4
) -> xl.ExitNet:
    """Built once in a process, and copied."""
    return copy.deepcopy(_build(final, head, backbone, seed, classes))


def weights(net: xl.ExitNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def raise_at(error, *steps):
    """Return an augmentation that raises at these steps."""
    seen = []

    def augment(x):
        seen.append(1)
        if len(seen) in steps:
            raise error
        return x

    return augment
