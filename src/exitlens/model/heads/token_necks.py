"""Small layers between a stage and its exit head for sequences: what a token is beside what it has become."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from exitlens.model.heads.necks import DEPTH, KERNEL, find_width


class TokenNeck(nn.Module):
    """Mixes neighbouring locations of a sequence: pairs of depthwise convolutions over 5 of them and linear layers.

    Deep tokens are mixtures of all tokens, so attention to them says little about where an answer comes from. Beside them it
    reads the tokens of an early stage (``lateral``), which are hardly mixed yet. The neck of images is
    :class:`~exitlens.model.heads.necks.ContextNeck`; here layer norms replace batch norms, and padding is never read.

    Args:
        channels: ``D`` of the features ``(B,D,N)``.
        width: channels of the layers, and of what comes out.
        lateral: channels of the earlier features ``(B,L,N)``; 0: none are given.
    """

    keeps_features = True  # the classifier reads the features beside what comes out

    def __init__(self, channels: int, width: int, lateral: int = 0) -> None:
        super().__init__()
        self.width = width
        self.inlet = _Inlet(channels, width)
        self.lateral = _Inlet(lateral, width) if lateral else None
        self.mixers = nn.ModuleList(_TokenMixer(width) for _ in range(DEPTH))

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """``(B,D,N)`` -> ``(B,width,N)``; ``keep``: ``(B or 1,N)`` bool, the positions that others may read."""
        x: Tensor = self.inlet(features)
        if self.lateral is not None and lateral is not None:
            x = x + self.lateral(lateral)
        x = F.relu(x)
        for mixer in self.mixers:
            x = mixer(x, keep)
        return x

    def fuse(self) -> TokenNeck:
        """Nothing to fold: layer norms need the input."""
        return self


class _Inlet(nn.Module):
    """Linear layer and layer norm, in the precision of the head."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(channels, width, bias=False), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B,D,N) -> (B,width,N), rows of memory
        return cast(Tensor, self.norm(self.linear(x.transpose(1, 2).to(self.linear.weight.dtype)))).transpose(1, 2)


class _TokenMixer(nn.Module):
    """``relu(x + norm(linear(relu(norm(depthwise(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width, bias=False)
        self.first, self.linear, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:  # (B,width,N)
        mixed = self.depthwise(x if keep is None else x * keep[:, None]).transpose(1, 2)
        return F.relu(x + self.second(self.linear(F.relu(self.first(mixed)))).transpose(1, 2))


def fit_token_neck(channels: int, locations: int, budget: float, lateral: int = 0) -> TokenNeck:
    """The widest neck within a budget of multiply-accumulates, and never below 8 channels."""

    def count_macs(width: int) -> int:
        return locations * (width * (channels + lateral) + DEPTH * (KERNEL * width + width**2))

    return TokenNeck(channels, find_width(count_macs, budget), lateral)
