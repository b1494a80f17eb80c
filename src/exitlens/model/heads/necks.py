"""Small layers between a stage and its exit head: shallow exits get the view they lack, deep ones a finer map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

KERNEL, DEPTH, WIDEST, NARROWEST = 5, 2, 256, 8
VOLUME_KERNEL = 3  # 5x5x5 would take longer than the rest of the neck
NECK_SHARE = 0.04  # of the plain backbone's MACs, for all necks together
LEAST_SIDE = 7  # of the maps of context heads, where the backbone has features as fine


class ContextNeck(nn.Module):
    """Brings the features to the grid of the maps and mixes them over it: pairs of depthwise 5x5 and 1x1 convolutions.

    Of volumes the depthwise convolutions are 3x3x3.

    An early stage sees a small part of the image at every location, so its exit can neither tell the object from the
    background nor look where the final exit looks. Exits with layers of their own are those of MSDNet (arXiv 1703.09844)
    and Shallow-Deep Networks (arXiv 1810.07052); depthwise-separable ones are of arXiv 1704.04861. Finer features are
    brought to the grid by a convolution over whole cells, which stays centred. Coarser ones are enlarged and added to those
    of an earlier stage, as in feature pyramids (arXiv 1612.03144): the map is as fine as these.

    Args:
        channels: ``D`` of the features ``(B,D,H,W)``, or ``(B,D,*S)``.
        width: channels of the convolutions, and of what comes out.
        shrink: factor by which height and width become smaller.
        lateral: channels of the map ``(B,L,h,w)`` whose grid the features are brought to; 0: none is given.
        axes: of locations: 2, or 3 of volumes.
    """

    def __init__(self, channels: int, width: int, shrink: int = 1, lateral: int = 0, axes: int = 2) -> None:
        super().__init__()
        self.shrink, self.width, self.keeps_features = shrink, width, lateral > 0
        self.inlet = _Step(channels, width, shrink, shrink, axes=axes)
        self.lateral = _Step(lateral, width, axes=axes) if lateral else None
        self.mixers = nn.Sequential(*(_Mixer(width, axes) for _ in range(DEPTH)))

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Features with context, ``(B,width,H/shrink,W/shrink)``; with a lateral map ``(B,width,h,w)``."""
        own = self.inlet.conv.weight.dtype  # the head's precision, whatever the stages'
        x = self.inlet(features.to(own))
        if self.lateral is not None and lateral is not None:
            beside = self.lateral(lateral.to(own))
            x = enlarge(x, beside.shape[2:]) + beside
        return cast(Tensor, self.mixers(F.relu(x)))

    def fuse(self) -> ContextNeck:
        """Folds the batch normalisations into the convolutions, for evaluation; changes and returns this neck."""
        for step in list(self.modules()):
            if isinstance(step, _Step) and isinstance(step.norm, nn.BatchNorm2d | nn.BatchNorm3d):
                step.conv, step.norm = fuse_conv_bn_eval(step.conv, step.norm), nn.Identity()
        return self


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:  # (B,D,H,W) -> (B,D,*size)
    """Linear enlargement along every axis, about the centres of cells."""
    return F.interpolate(x, tuple(size), mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)


def find_spread(size: Sequence[int], onto: Sequence[int], like: Tensor) -> Tensor | None:
    """``(N,M)``: what :func:`enlarge` takes for each of N fine locations from each of M coarse ones; rows sum to 1.

    ``None`` where they are the same.
    """
    if tuple(size) == tuple(onto):
        return None
    count = math.prod(size)
    cells = torch.eye(count, dtype=torch.float32, device=like.device).view(count, 1, *size)
    return enlarge(cells, onto).view(count, -1).t().to(like.dtype)


class _Step(nn.Module):
    """Convolution and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, axes: int = 2) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        make, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv: nn.Conv2d | nn.Conv3d = make(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.conv(x)))


class _Mixer(nn.Module):
    """``relu(x + pointwise(relu(depthwise(x))))``."""

    def __init__(self, width: int, axes: int = 2) -> None:
        super().__init__()
        self.depthwise = _Step(width, width, find_kernel(axes), groups=width, axes=axes)
        self.pointwise = _Step(width, width, axes=axes)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(F.relu(self.depthwise(x))))


def find_kernel(axes: int) -> int:
    """Side of the depthwise convolutions over so many axes."""
    return KERNEL if axes == 2 else VOLUME_KERNEL


def find_width(count_macs: Callable[[int], int], budget: float) -> int:
    """The largest width within a budget of multiply-accumulates, of those that necks may have."""
    width = NARROWEST
    while width + 8 <= WIDEST and count_macs(width + 8) <= budget:
        width += 8
    return width


def fit_neck(channels: int, size: Sequence[int], grid: Sequence[int], budget: float, lateral: int = 0) -> ContextNeck:
    """The widest neck within a budget of multiply-accumulates, and never below 8 channels.

    It brings the map from its ``size`` ``(H,W)`` to the ``grid`` of the maps: by enlarging it where there is a ``lateral``
    map of so many channels, else by shrinking, where that divides it.
    """
    factors = {a // b if a % b == 0 else 1 for a, b in zip(size, grid, strict=True)}
    shrink = factors.pop() if len(factors) == 1 and not lateral else 1
    locations = math.prod(grid if lateral else [n // shrink for n in size])

    window = math.prod([find_kernel(len(size))] * len(size))

    def count_macs(width: int) -> int:
        inlets = math.prod(size) * channels + locations * lateral
        return width * inlets + DEPTH * locations * (window * width + width**2)

    return ContextNeck(channels, find_width(count_macs, budget), shrink, lateral, len(size))
