"""Small layers before an exit head on vectors: a location for each group of features that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitlens.errors import InputError
from exitlens.model.heads.necks import find_width
from exitlens.types.inputs import Groups


class GroupNeck(nn.Module):
    """Reads each group of the vector by itself, beside what the hidden features say of the whole.

    ``g_j = relu(W_j x_j + b_j + V h)``, then ``relu(g_j + U relu(g_j))``: the location of group j sees its own features
    ``x_j``, and through ``h`` what the network has made of all of them. So attention to it means that these features count
    *given* the others; that they count alone is for deletion to show. Additive networks without ``h`` are those of
    arXiv 2004.13912.

    Args:
        channels: ``D`` of the hidden features ``(B,D,1)``.
        features: ``F`` of the vector ``(B,F,1)``.
        groups: names of the groups, and which features they have.
        width: channels of what comes out.
    """

    keeps_features = False

    def __init__(self, channels: int, features: int, groups: Groups, width: int) -> None:
        super().__init__()
        self.width = width
        self.members = [list(members) for _, members in groups]
        self.inlet = nn.Linear(channels, width, bias=False)
        self.readers = nn.ModuleList(nn.Linear(len(members), width) for members in self.members)
        self.mixer = nn.Linear(width, width)

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """``(B,D,1)`` and the vector ``(B,F,1)`` -> ``(B,width,G)``."""
        assert lateral is not None
        own = self.inlet.weight.dtype
        vector, whole = lateral[..., 0].to(own), self.inlet(features[..., 0].to(own))
        pairs = zip(self.readers, self.members, strict=True)
        read = torch.stack([reader(vector[:, members]) for reader, members in pairs], 1)  # (B,G,width)
        x = F.relu(read + whole[:, None])
        return F.relu(x + self.mixer(x)).transpose(1, 2)

    def fuse(self) -> GroupNeck:
        """There is nothing to fold."""
        return self


def fit_group_neck(channels: int, features: int, groups: Groups, budget: float) -> GroupNeck:
    """The widest neck within a budget of multiply-accumulates, and never below 8 channels."""

    def count_macs(width: int) -> int:
        return width * (channels + features) + len(groups) * width**2

    return GroupNeck(channels, features, groups, find_width(count_macs, budget))


def check_groups(groups: Mapping[str, Sequence[int]] | None, shape: Sequence[int], first: Tensor) -> Groups:
    """Groups of features in their order; raises :class:`InputError` for what are none of a vector of this shape."""
    if groups is None:
        return ()
    if len(shape) != 1 or not first.is_floating_point():
        raise InputError(f"groups: they are for vectors (B,F), the example has samples of {tuple(shape)}: leave them out")
    if not isinstance(groups, Mapping) or len(groups) < 2:
        raise InputError(f"groups: expected a dict of two groups or more, such as {{'blood': [0, 1]}}, got {groups!r:.60}")
    for name, members in groups.items():
        good = isinstance(members, Sequence) and not isinstance(members, str) and len(members) > 0
        if not good or not all(isinstance(i, int) and 0 <= i < shape[0] for i in members):
            raise InputError(f"groups: {name!r}: expected columns from 0 to {shape[0] - 1}, got {members!r:.60}")
    taken = [i for members in groups.values() for i in members]
    if len(set(taken)) < len(taken):
        twice = next(i for i in taken if taken.count(i) > 1)
        raise InputError(f"groups: column {twice} is in two groups: every feature belongs to one at most")
    return tuple((str(name), tuple(members)) for name, members in groups.items())
