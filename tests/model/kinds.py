"""Tiny networks of tokens and recurrent layers, and a builder for others; tests/kinds.py has more."""

from __future__ import annotations

from contextlib import contextmanager

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


@contextmanager
def check_unchanged(network):
    """Weights, gradients, modes and PyTorch's random state are what they were before."""
    state, random = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    modes = [module.training for module in network.modules()]
    yield
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, state[name])]
    assert not changed
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


class Encoder(nn.Module):
    """Tokens embedded as (B,N,D) or, by convolutions, as (B,D,...), perhaps with one for the class in front of them."""

    def __init__(self, embed: nn.Module, count: int, width: int = 8, class_token: bool = False) -> None:
        super().__init__()
        self.embed = embed
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.position = nn.Parameter(0.1 * torch.randn(1, count + class_token, width))
        layer = {"nhead": 2, "dim_feedforward": 12, "batch_first": True}
        self.one, self.two = (nn.TransformerEncoderLayer(width, **layer) for _ in range(2))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if not isinstance(self.embed, nn.Linear):
            x = x.flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.two(self.one(x + self.position)))
        return self.fc(x.mean(1) if self.token is None else x[:, 0])


def embed_steps(width: int = 8, **options: bool) -> Encoder:
    """(B,T,2): a token for every step."""
    return Encoder(nn.Linear(2, width), STEPS, width, **options)


def embed_patches(**options: bool) -> Encoder:
    """(B,2,T): a token for every four steps."""
    return Encoder(nn.Conv1d(2, 8, 4, 4), STEPS // 4, **options)


def embed_squares() -> Encoder:
    """(B,1,16,16): a token for every 4x4 pixels, and one for the class."""
    return Encoder(nn.Conv2d(1, 8, 4, 4), 16, class_token=True)


def embed_features(**options: bool) -> Encoder:
    """(B,6): a token for every feature."""
    weight = nn.Parameter(torch.randn(8, 6))
    return Encoder(make_network(lambda net, x: x[:, None] * net.weight, weight=weight), 6, **options)
