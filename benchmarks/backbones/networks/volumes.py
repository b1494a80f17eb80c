"""A residual network of volumes ``(B,C,D,H,W)``; others are of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm3d(outputs))
        self.around = nn.Conv3d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.around(x))


class ResNet3d(nn.Module):
    """Four residual blocks for scans of one channel."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        sizes = ((1, 1, 1), (1, 2, 2), (2, 4, 2), (4, 4, 1))
        self.blocks = nn.Sequential(*(_Residual(a * width, b * width, stride) for a, b, stride in sizes))
        self.pool, self.classifier = nn.AdaptiveAvgPool3d(1), nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,D,H,W) -> (B,classes)
        return self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))


def make_mvit() -> nn.Module:
    """torchvision's MViT of four blocks, for volumes of 8x32x32."""
    from torchvision.models.video import MViT
    from torchvision.models.video.mvit import MSBlockConfig

    blocks = [
        MSBlockConfig(1, 96, 96, [3, 3, 3], [1, 4, 4], [], []),
        MSBlockConfig(1, 96, 192, [3, 3, 3], [1, 4, 4], [], []),
        MSBlockConfig(2, 192, 192, [3, 3, 3], [1, 2, 2], [3, 3, 3], [1, 2, 2]),
        MSBlockConfig(2, 192, 192, [3, 3, 3], [1, 2, 2], [3, 3, 3], [1, 1, 1]),
    ]
    return MViT((32, 32), 8, blocks, False, False, False, 0.0, num_classes=5)
