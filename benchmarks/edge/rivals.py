"""earlyon 0.3.0 on the same backbone, its exits forced to the same shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.edge.speed import EARLYON
from benchmarks.performance.rivals import make_rivals
from exitlens.delivery.bench.benchmark import MIXED
from exitlens.model.timing import Work


def make_earlyon(plain: nn.Module, net: xl.ExitNet, images: Tensor, policy: xl.Policy) -> Work:
    """One image a call, with the memory format and kept memory that tuning chose for ours in PyTorch."""
    exits = torch.cat([xl.predict(net, batch, policy).exits for batch in images.split(8)])
    make = make_rivals(plain, net, images.shape[-1])[f"earlyon, {MIXED}, same formats"]
    return make(images, 1, {MIXED: exits})


RIVALS = {EARLYON: make_earlyon}
