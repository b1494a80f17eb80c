"""Our own small residual network for images of 28 to 64 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS, STRIDES = (1, 1, 1, 3), (1, 2, 1, 1)  # of the groups: residual blocks, and the first block's stride


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut (arXiv 1512.03385, fig. 2), aligned when they halve the size.

    A strided 3x3 convolution centres output ``i`` on input ``2i``, half a cell off the pair of inputs it replaces; after
    three of them, attention maps would lie half a cell off the object. A 4x4 convolution with stride 2 and an averaging
    shortcut (arXiv 1812.01187, ResNet-D) stay centred. The second convolution mixes channels only, which keeps the
    receptive field small.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 or inputs != outputs:
            shrink: nn.Module = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(shrink, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (B,inputs,H,W) -> (B,outputs,H/stride,W/stride)
        """Residual sum, rectified."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for images of 28 to 64 pixels (even sizes): a stem and four groups, ``layer1`` to ``layer4``.

    Early groups see little of the image (small receptive fields) and are cheap; the last one is deep and sees most of it.

    Args:
        num_classes: ``C``.
        in_channels: 1 for grey, 3 for colour.
        stem: channels after the stem (4x4, stride 2).
        widths: channels of the groups.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: int = 32,
        widths: Sequence[int] = (48, 96, 128, 128),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        channels = stem
        for group, (width, count, stride) in enumerate(zip(widths, BLOCKS, STRIDES, strict=True), 1):
            layers = [ResidualBlock(channels, width, stride)]
            layers += [ResidualBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{group}", nn.Sequential(*layers))
            channels = width
        self.groups = tuple(f"layer{group}" for group in range(1, len(widths) + 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,in_channels,H,W) -> (B,num_classes)
        """Logits of global average pooling and a linear classifier."""
        x = self.stem(x)
        for name in self.groups:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return]
