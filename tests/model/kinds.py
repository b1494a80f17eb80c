"""Tiny networks of series, volumes, vectors and several inputs, and a builder for others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS, CLASSES = 24, 3


def make_network(forward, base=nn.Module, **members):
    """Return a network with these members and buffers, whose forward is a function of it and its inputs."""
    network = type("Made", (base,), {"forward": forward})()
    for name, member in members.items():
        is_buffer = isinstance(member, Tensor) and not isinstance(member, nn.Parameter)
        (network.register_buffer if is_buffer else network.__setattr__)(name, member)
    return network


def check_outputs(outs, heads):
    """Attention sums to 1, and evidence and bias to the logits."""
    for out, head in zip(outs, heads, strict=True):
        torch.testing.assert_close(out.attention.flatten(1).sum(1), torch.ones(len(out.logits)))
        torch.testing.assert_close(out.evidence.flatten(2).sum(2) + head.bias, out.logits, rtol=1e-4, atol=1e-4)


class ConvSeries(nn.Module):
    """(B,2,T): three convolutions, the second of half the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(2, 6, 3, 1, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv1d(6, 8, 3, 2, 1), nn.ReLU())
        self.c, self.pool = nn.Sequential(nn.Conv1d(8, 10, 3, 1, 1), nn.ReLU()), nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.c(self.b(self.a(x)))).flatten(1))


class Transposed(nn.Module):
    """(B,T,2), and transposes to convolutions itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ConvSeries()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(1, 2))


class Recurrent(nn.Module):
    """(B,T,2): recurrent layers, of which each gives a tuple."""

    def __init__(self, kind: type[nn.Module] = nn.GRU, width: int = 6) -> None:
        super().__init__()
        self.one, self.two = kind(2, width, batch_first=True), kind(width, width, batch_first=True)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.one(x)
        x, _ = self.two(x)
        return self.fc(x[:, -1])


class Tokens(nn.Module):
    """(B,T,2): a token for every step, or (B,2,T): for every patch of four; perhaps a class token in front."""

    def __init__(self, width: int = 8, class_token: bool = False, patch: int = 0, steps: int = STEPS) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, width, patch, patch) if patch else nn.Linear(2, width)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        count = (steps // patch if patch else steps) + class_token
        self.position = nn.Parameter(0.1 * torch.randn(1, count, width))
        layer = {"nhead": 2, "dim_feedforward": 12, "batch_first": True}
        self.one, self.two = (nn.TransformerEncoderLayer(width, **layer) for _ in range(2))
        self.fc, self.patch = nn.Linear(width, CLASSES), patch

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2) if self.patch else self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.two(self.one(x + self.position))
        return self.fc(x.mean(1) if self.token is None else x[:, 0])


class ConvVolume(nn.Module):
    """(B,1,D,H,W): three convolutions, two of half the size."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 4, 1), (4, 6, 2), (6, 8, 2))
        self.a, self.b, self.c = (nn.Sequential(nn.Conv3d(i, o, 3, s, 1), nn.ReLU()) for i, o, s in sizes)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x))).mean((2, 3, 4)))


class MLP(nn.Module):
    """(B,6): two hidden layers."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(n, width), nn.ReLU()) for n in (6, width))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)))


class FeatureTokens(nn.Module):
    """(B,6): a token for every feature, perhaps with a class token in front."""

    def __init__(self, class_token: bool = False, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, width))
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        layer = {"nhead": 2, "dim_feedforward": 12, "batch_first": True}
        self.one, self.two = (nn.TransformerEncoderLayer(width, **layer) for _ in range(2))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., None] * self.weight
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.two(self.one(x))
        return self.fc(x.mean(1) if self.token is None else x[:, 0])


class SeriesAndVector(nn.Module):
    """(B,2,T) and (B,5): the vector shifts the features, and is read at the end, too."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shift = ConvSeries(), nn.Linear(5, 8)
        self.fc = nn.Linear(10 + 8, CLASSES)

    def forward(self, series: Tensor, vector: Tensor) -> Tensor:
        shift = self.shift(vector)
        x = self.net.c(self.net.b(self.net.a(series)) + shift[..., None])
        return self.fc(torch.cat([x.mean(2), shift], 1))
