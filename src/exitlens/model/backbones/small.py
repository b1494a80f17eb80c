"""Our own small networks: a residual one for images of 28 to 64 pixels, series and small volumes, and one for vectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = {1: (nn.Conv1d, nn.BatchNorm1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d),
           2: (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
           3: (nn.Conv3d, nn.BatchNorm3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)}  # fmt: skip
_SIDES = {1: (9, 8), 2: (3, 4), 3: (3, 4)}  # of a convolution, and of one that halves the size: series have long patterns
BLOCKS, STRIDES = (1, 1, 1, 3), (1, 2, 1, 1)  # of the groups: residual blocks, and the first block's stride
Widths = Sequence[int]


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut (arXiv 1512.03385, fig. 2), aligned when they halve the size.

    A 4x4 convolution with stride 2 and an averaging shortcut (arXiv 1812.01187, ResNet-D) stay centred; 3x3 would move by
    half a cell. The second convolution mixes channels only, which keeps the receptive field small.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, axes: int = 2) -> None:
        super().__init__()
        convolve, norm, pool, _ = _LAYERS[axes]
        side = _SIDES[axes][stride - 1]
        self.conv1 = convolve(inputs, outputs, side, stride, (side - 1) // 2, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = convolve(outputs, outputs, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 or inputs != outputs:
            shrink: nn.Module = pool(2) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(shrink, convolve(inputs, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B,outputs,H/stride,W/stride)`` from ``(B,inputs,H,W)``."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class SmallResNet(nn.Sequential):
    """A residual network for images of 28 to 64 pixels (even sizes): a stem and four groups, ``layer1`` to ``layer4``.

    Early groups see little of the image and are cheap; the last one is deep and sees most of it. There are 1, 2 or 3
    ``axes`` of locations: in series ``(B,C,T)`` of 64 steps and more, images, or small volumes.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, stem: int = 32, widths: Widths = (48, 96, 128, 128), axes: int = 2
    ) -> None:
        convolve, norm, _, pool = _LAYERS[axes]
        channels, side = stem, _SIDES[axes][1]
        first = convolve(in_channels, stem, side, 2, (side - 1) // 2, bias=False)
        layers: dict[str, nn.Module] = {"stem": nn.Sequential(first, norm(stem), nn.ReLU(inplace=True))}
        for group, (width, count, stride) in enumerate(zip(widths, BLOCKS, STRIDES, strict=True), 1):
            blocks = [ResidualBlock(channels, width, stride, axes)]
            blocks += [ResidualBlock(width, width, 1, axes) for _ in range(count - 1)]
            layers[f"layer{group}"], channels = nn.Sequential(*blocks), width
        super().__init__(OrderedDict(layers, pool=pool(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes)))
        self.groups = tuple(layers)[1:]


class SmallMLP(nn.Sequential):
    """A residual perceptron for standardised vectors: embedding and blocks ``layer1`` to ``layer4`` (arXiv 2106.11959)."""

    def __init__(self, num_classes: int, features: int, width: int = 128) -> None:
        layers = {"embed": nn.Linear(features, width)} | {f"layer{i}": _VectorBlock(width) for i in range(1, 5)}
        norm, fc = nn.BatchNorm1d(width), nn.Linear(width, num_classes)
        super().__init__(OrderedDict(layers, norm=norm, act=nn.ReLU(), fc=fc))


class _VectorBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:  # (B,width) -> (B,width)
        hidden: Tensor = self.dropout(F.relu(self.up(self.norm(x))))
        return x + self.down(hidden)  # type: ignore[no-any-return]
