"""Convolutional networks of series ``(B,C,T)``: those of arXiv 1611.06455, 1909.04939 and 1803.01271."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def make_block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


class FCN(nn.Module):
    """Three blocks of convolutions and global average pooling (arXiv 1611.06455)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.block1, self.block2 = make_block(channels, 128, 7), make_block(128, 256, 5)
        self.block3 = make_block(256, 128, 3)
        self.pool, self.classifier = nn.AdaptiveAvgPool1d(1), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(self.pool(x).flatten(1))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(make_block(inputs, outputs, 7, stride), make_block(outputs, outputs, 5))
        self.last = nn.Sequential(nn.Conv1d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm1d(outputs))
        self.around = nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.inner(x)) + self.around(x))


class ResNet1d(nn.Module):
    """Residual blocks of three convolutions (arXiv 1611.06455), each of half the steps of the one before but the first."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = (64, 128, 128, 128)) -> None:
        super().__init__()
        sizes = zip((channels, *widths), widths, range(len(widths)), strict=False)
        self.blocks = nn.ModuleList(_Residual(inputs, outputs, min(i + 1, 2)) for inputs, outputs, i in sizes)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(2))


class _Inception(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, width, 1, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, k, padding=k // 2, bias=False) for k in (9, 19, 39))
        self.pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        return torch.relu(self.norm(torch.cat([*(one(narrow) for one in self.convolutions), self.pooled(x)], 1)))


class InceptionTime(nn.Module):
    """Six modules of convolutions of three lengths, with a residual connection around every three (arXiv 1909.04939)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(_Inception(4 * width if i else channels, width) for i in range(6))
        norm = nn.BatchNorm1d(4 * width)
        self.shortcut1 = nn.Sequential(nn.Conv1d(channels, 4 * width, 1, bias=False), norm)
        self.shortcut2 = nn.BatchNorm1d(4 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        start = self.shortcut1(x)
        for i, module in enumerate(self.modules_):
            x = module(x)
            if i in (2, 5):
                x = torch.relu(x + start)
                start = self.shortcut2(x) if i == 2 else start
        return self.classifier(x.mean(2))


class _Causal(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.chop = 2 * dilation
        first, second = (
            nn.utils.parametrizations.weight_norm(nn.Conv1d(n, outputs, 3, padding=self.chop, dilation=dilation))
            for n in (inputs, outputs)
        )
        self.first, self.second = first, second
        self.around = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(torch.relu(self.first(x)[..., : -self.chop]))
        y = self.dropout(torch.relu(self.second(y)[..., : -self.chop]))
        return torch.relu(y + self.around(x))


class TCN(nn.Module):
    """Causal convolutions with growing gaps, weight normalisation, and the last step's answer (arXiv 1803.01271)."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_Causal(width if i else channels, width, 2**i) for i in range(5)))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        return self.classifier(self.layers(x)[:, :, -1])
