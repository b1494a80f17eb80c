"""Samples that belong together: parts that share no group, and one value for each group.

Only groups are independent of one another, so a test has as many observations as there are groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def number_groups(groups: Tensor | Sequence[Hashable]) -> Tensor:  # -> (N,) int64
    """Integers as they are; of names, the position of each among all in order of their first sample."""
    if isinstance(groups, Tensor):
        return groups
    positions: dict[Hashable, int] = {}
    return torch.tensor([positions.setdefault(one, len(positions)) for one in groups], dtype=torch.int64)


def shuffle_groups(groups: Tensor, seed: int) -> Tensor:  # (N,) ids -> (N,) in [0, G)
    """Numbers the groups in a random order, so that no order of the ids (by class, by date) comes into a test."""
    found, numbers = groups.unique(return_inverse=True)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return order[numbers]


def split_groups(groups: Tensor, share: float) -> tuple[Tensor, Tensor]:  # (N,) in [0, G)
    """Indices of the samples of the first ``share`` of the groups (one or more), and of all others, group by group."""
    proposing = groups < max(1, round(share * (int(groups.max()) + 1)))
    order, count = groups.argsort(stable=True), int(proposing.sum())
    return order[:count], order[count:]


def count_groups(groups: Tensor) -> int:  # (N,) in [0, G)
    """How many groups are there."""
    return int((groups.bincount() > 0).sum())


def average_groups(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:  # (N,), (N,) in [0, G) -> (g,), (g,)
    """The mean of every group that is there, and its size, by increasing number; float64."""
    sizes = groups.bincount()
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, groups, values.double())
    there = sizes > 0
    return sums[there] / sizes[there], sizes[there].double()


def weigh_samples(groups: Tensor, largest: int | None) -> Tensor:  # (N,) in [0, G) -> (N,)
    """What each sample counts so that a group counts as its size, at most ``largest``; ``None``: every group the same.

    float64, of mean 1.
    """
    sizes = groups.bincount().double()
    share: Tensor = (1 / sizes if largest is None else sizes.clamp_max(largest) / sizes)[groups]
    return share / share.mean()


def find_firsts(groups: Tensor) -> Tensor:  # (N,) -> (G,)
    """The index of the first sample of each group, in order of the samples."""
    found, numbers = groups.unique(return_inverse=True)
    firsts = torch.full((len(found),), len(groups)).scatter_reduce(0, numbers, torch.arange(len(groups)), "amin")
    return firsts.sort().values
