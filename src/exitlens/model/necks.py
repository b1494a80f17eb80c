"""Small layers between a shallow stage and its exit head: they let the exit see the whole image at little cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

KERNEL, DEPTH, WIDEST, NARROWEST = 5, 2, 256, 16
NECK_SHARE = 0.04  # of the plain backbone's MACs, for all necks together


class ContextNeck(nn.Module):
    """Averages the features to a coarser grid and mixes them over it: 1x1 and depthwise 5x5 convolutions, in turn.

    An early stage sees a small part of the image at every location, so its exit can neither tell the object from the
    background nor look where the final exit looks. Exits with layers of their own are those of MSDNet (arXiv 1703.09844)
    and Shallow-Deep Networks (arXiv 1810.07052); depthwise-separable ones (arXiv 1704.04861) on the final exit's grid cost
    about 1 % of the backbone.

    Args:
        channels: of the features ``(B,D,H,W)``.
        width: channels of the convolutions, and of what comes out.
        shrink: factor by which height and width are averaged down first.
    """

    def __init__(self, channels: int, width: int, shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        self.channels = width
        self.inlet = _Step(channels, width, 1)
        self.mixers = nn.Sequential(*(_Step(width, width, kernel) for kernel in [KERNEL, 1] * DEPTH))

    def forward(self, features: Tensor) -> Tensor:  # (B,D,H,W) -> (B,channels,H/shrink,W/shrink)
        """Features with context."""
        x = F.avg_pool2d(features, self.shrink) if self.shrink > 1 else features
        x = self.inlet(x.to(self.inlet.conv.weight.dtype))  # in the head's own precision, whatever the stages'
        return cast(Tensor, self.mixers(x))

    def fuse(self) -> ContextNeck:
        """Folds the batch normalisations into the convolutions, for evaluation; changes and returns this neck."""
        for step in list(self.modules()):
            if isinstance(step, _Step) and isinstance(step.norm, nn.BatchNorm2d):
                step.conv, step.norm = fuse_conv_bn_eval(step.conv, step.norm), nn.Identity()
        return self


class _Step(nn.Module):
    """Convolution (depthwise if the kernel is larger than 1), batch normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        groups = inputs if kernel > 1 else 1
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def fit_neck(channels: int, size: Sequence[int], final: Sequence[int], budget: float) -> ContextNeck:
    """The widest neck within a budget of multiply-accumulates, and never below 16 channels where the features have them.

    It brings the map from its ``size`` ``(H,W)`` to the ``final`` exit's, where that divides it.
    """
    factors = {a // b if a % b == 0 else 1 for a, b in zip(size, final, strict=True)}
    shrink = factors.pop() if len(factors) == 1 else 1
    locations = math.prod(n // shrink for n in size)
    width = min(channels, NARROWEST)
    while width + 8 <= min(channels, WIDEST) and locations * _macs_per_location(channels, width + 8) <= budget:
        width += 8
    return ContextNeck(channels, width, shrink)


def _macs_per_location(channels: int, width: int) -> int:
    return channels * width + DEPTH * (KERNEL**2 * width + width**2)
