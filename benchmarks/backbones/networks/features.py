"""Networks of vectors ``(B,F)``, and of several inputs of which one is a vector."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.backbones.networks.convolutional import make_block
from benchmarks.backbones.networks.sequential import make_layers


class MLP(nn.Module):
    """Linear layers with batch normalisation and dropout."""

    def __init__(self, features: int, classes: int, width: int = 384) -> None:
        super().__init__()
        sizes = (features, *(width,) * 4)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.1)) for a, b in pairwise(sizes))
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,F) -> (B,classes)
        return self.classifier(self.layers(x))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(self.norm(x))))


class ResidualMLP(nn.Module):
    """Residual blocks on features (the ResNet of arXiv 2106.11959)."""

    def __init__(self, features: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(4))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,F) -> (B,classes)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(torch.relu(self.norm(x)))


class FeatureTokens(nn.Module):
    """A token for every feature, then a transformer (FT-Transformer, arXiv 2106.11959), with or without a class token."""

    def __init__(self, features: int, classes: int, width: int = 48, class_token: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, width))
        self.bias = nn.Parameter(0.1 * torch.randn(features, width))
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.layers, self.classifier = make_layers(width, 4), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,F) -> (B,classes)
        x = x[..., None] * self.weight + self.bias
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(1) if self.token is None else x[:, 0])


class ImageAndVector(nn.Module):
    """Convolutions on an image, scaled and shifted by what a vector says (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels: int, features: int, classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = ((channels, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in sizes
        )
        self.scale, self.shift = nn.Linear(features, 2 * width), nn.Linear(features, 2 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:  # (B,C,H,W), (B,F) -> (B,classes)
        x = self.blocks[1](self.blocks[0](image))
        x = x * (1 + self.scale(vector)[..., None, None]) + self.shift(vector)[..., None, None]
        return self.classifier(self.blocks[3](self.blocks[2](x)).mean((2, 3)))


class SeriesAndVector(nn.Module):
    """Convolutions on a series, and a vector that is read at the end."""

    def __init__(self, channels: int, features: int, classes: int, width: int = 64) -> None:
        super().__init__()
        sizes = (
            (channels, width, 7, 1),
            (width, 2 * width, 5, 2),
            (2 * width, 2 * width, 5, 1),
            (2 * width, 2 * width, 3, 1),
        )
        self.blocks = nn.ModuleList(make_block(*one) for one in sizes)
        self.of_vector = nn.Sequential(nn.Linear(features, 32), nn.ReLU())
        self.classifier = nn.Linear(2 * width + 32, classes)

    def forward(self, series: Tensor, vector: Tensor) -> Tensor:  # (B,C,T), (B,F) -> (B,classes)
        for block in self.blocks:
            series = block(series)
        return self.classifier(torch.cat([series.mean(2), self.of_vector(vector)], 1))
