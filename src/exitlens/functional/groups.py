"""Groups of samples that belong together. Only groups are independent, so a test has as many observations as groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from exitlens.functional.compact import restore_logits
from exitlens.types import Trace
from exitlens.types.tasks import CONTINUOUS


def shuffle_groups(groups: Tensor, seed: int) -> Tensor:  # (N,) ids -> (N,) in [0, G)
    """Number the groups in a random order, so that no order of the ids (by class, by date) comes into a test."""
    ids, numbers = groups.unique(return_inverse=True)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return order[numbers]


def split_groups(groups: Tensor, share: float) -> tuple[Tensor, Tensor]:  # (N,) in [0, G)
    """Return indices of the samples of the first ``share`` of the groups (one or more), and of all others, by group."""
    proposing = groups < max(1, round(share * (int(groups.max()) + 1)))
    order, count = groups.argsort(stable=True), int(proposing.sum())
    return order[:count], order[count:]


def split_trace(trace: Trace, share: float, seed: int, units: Tensor | None = None) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the groups in random order (``None`` if every sample is its own), and indices of two parts of the samples.

    The first part has this ``share`` of the samples, or of the groups as wholes, at least one. The indices are in random
    order (groups: numbered at random), on which tests by betting rely. ``units`` ``(N,)``, of samples that depend on one
    another, are groups as well.
    """
    if units is None and trace.groups is not None and trace.num_groups < len(trace):
        units = trace.groups
    rows = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    if units is not None:
        groups = shuffle_groups(units, seed)
        if trace.groups is not None:
            return groups, *split_groups(groups, share)
        first, second = split_groups(groups[rows], share)
        return groups, rows[first.sort().values], rows[second.sort().values]
    count = max(1, round(share * len(trace)))
    return None, rows[:count], rows[count:]


def draw_from_groups(groups: Tensor, limit: int, seed: int) -> Tensor:  # (N,) -> (n,)
    """Draw at most ``limit`` samples at random: as many from every group, or one each from so many groups."""
    rows = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    numbers, order = shuffle_groups(groups[rows], seed).sort(stable=True)
    sizes = numbers.bincount()
    place = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[numbers]  # of each among its group's
    return rows[order[(place < max(1, limit // len(sizes))) & (numbers < limit)]]


def pair_groups(groups: Tensor, seed: int) -> tuple[Tensor, Tensor]:  # (N,) -> (N,), (N,)
    """Draw a sample of another group for each, and return them and units: groups that take from one another only.

    Groups are paired at random, and of an odd number the last three take in a circle: units share nothing.
    """
    numbers = shuffle_groups(groups, seed)
    count = int(numbers.max()) + 1
    unit = (torch.arange(count) // 2).clamp_max(max(count // 2 - 1, 0))  # of each group
    other = torch.arange(count) ^ 1
    if count % 2:
        other[-3:] = torch.tensor([count - 2, count - 1, count - 3])[-count:]
    members, sizes = numbers.argsort(stable=True), numbers.bincount(minlength=count)
    starts = sizes.cumsum(0) - sizes
    wanted = other[numbers]
    place = torch.rand(len(numbers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return members[starts[wanted] + (place * sizes[wanted]).long()], unit[numbers]


def join_units(groups: Tensor | None, unit: Tensor) -> Tensor:  # (N,), (N,), -1: in none -> (N,)
    """Number the samples by what depends on what: groups that share a unit, and units that share a group, are one."""
    count = len(unit)
    names = torch.arange(count) if groups is None else groups.unique(return_inverse=True)[1]
    rows = (unit >= 0).nonzero()[:, 0]
    ends = int(names.max()) + 1 + int(unit.max()) + 1
    links = csr_array((np.ones(len(rows)), (names[rows].numpy(), (int(names.max()) + 1 + unit[rows]).numpy())), (ends, ends))
    return torch.from_numpy(connected_components(links, directed=False)[1].astype(np.int64))[names]


def count_groups(groups: Tensor) -> int:  # (N,) in [0, G)
    """Return the number of groups."""
    return int((groups.bincount() > 0).sum())


def average_groups(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:  # (N,), (N,) in [0, G) -> (g,), (g,)
    """Return the mean of every group that has samples, and its size, by increasing number; float64."""
    sizes = groups.bincount()
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, groups, values.double())
    there = sizes > 0
    return sums[there] / sizes[there], sizes[there].double()


def sum_groups(counts: Tensor, groups: Tensor) -> Tensor:  # (N,*S), (N,) -> (g,*S)
    """Return the sum of the counts of every group that has samples, by increasing number; int64."""
    ids, numbers = groups.unique(return_inverse=True)
    return counts.new_zeros(len(ids), *counts.shape[1:], dtype=torch.int64).index_add(0, numbers, counts.long())


def weigh_samples(groups: Tensor, largest: int | None) -> Tensor:  # (N,) in [0, G) -> (N,)
    """Return float64 weights of mean 1: a group weighs its size, capped at ``largest``; ``None``: all groups the same."""
    sizes = groups.bincount().double()
    share: Tensor = (1 / sizes if largest is None else sizes.clamp_max(largest) / sizes)[groups]
    return share / share.mean()


def find_firsts(groups: Tensor) -> Tensor:  # (N,) -> (G,)
    """Return the index of the first sample of each group, in order of the samples."""
    _, firsts = np.unique(groups.numpy(), return_index=True)
    return torch.from_numpy(firsts).sort().values


MOST = 2000  # samples to compare
CLASSES = 20  # the most frequent ones, of which they come
FEWEST = 10  # samples of a class: smaller classes are left out
ALIKE, SURE = 0.45, 6.0  # limits for a warning (docs/concepts/guarantees.md says what was seen)


class Likeness(NamedTuple):
    """The likeness of samples at one distance in the order."""

    lag: int  # distance, among the samples of one answer, at which they are most alike
    rank: float  # of their distance (in logits) among the distances to all samples of that answer, in [0, 1]; 0.5: chance
    deviation: float  # standard errors by which the rank is below 0.5

    @property
    def is_suspicious(self) -> bool:
        """True if this is more than chance, and enough to matter."""
        return self.rank <= ALIKE and self.deviation >= SURE


def measure_likeness(trace: Trace) -> Likeness | None:
    """Compare the logits of all exits within each frequent answer; ``None`` without classes, or below 100 samples."""
    if trace.task in CONTINUOUS:
        return None
    answers = trace.logits[:, -1].argmax(-1)  # with several labels the strongest
    counts = answers.bincount()
    classes = [c for c in counts.argsort(descending=True)[:CLASSES].tolist() if counts[c] >= FEWEST]
    sums, pairs = torch.zeros(MOST + 1, dtype=torch.float64), torch.zeros(MOST + 1, dtype=torch.float64)
    total, left = 0, MOST
    for i, c in enumerate(reversed(classes)):  # the rarest first: what they do not use is left to the others
        where = (answers == c).nonzero().flatten()
        length = min(len(where), left // (len(classes) - i))
        start = (len(where) - length) // 2
        ranks = rank_distances(embed(trace, where[start : start + length]))
        earlier, later = torch.triu_indices(length, length, 1)
        sums.index_add_(0, later - earlier, ranks[earlier, later].double())
        pairs.index_add_(0, later - earlier, torch.ones(len(earlier), dtype=torch.float64))
        total, left = total + length, left - length
    enough = pairs >= max(30, total / 4)
    if total < 100 or not enough.any():
        return None
    means = sums / pairs.clamp_min(1)
    deviations = torch.where(enough, (0.5 - means) * (12 * pairs).sqrt(), -torch.inf)  # of a uniform rank: 1 / 12
    lag = int(deviations.argmax())
    return Likeness(lag, means[lag].item(), deviations[lag].item())


def embed(trace: Trace, rows: Tensor) -> Tensor:  # (n,) -> (n,K*C)
    """Return the logits of all exits without what softmax does not see, each exit to the same scale."""
    logits = restore_logits(trace.logits[rows])
    centred = logits - logits.mean(2, keepdim=True)
    return (centred / centred.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-12)).flatten(1)


def rank_distances(points: Tensor) -> Tensor:  # (n,D) -> (n,n)
    """Rank, in [0, 1], the distance of two points among those to all others; the mean of both points' ranks."""
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(-1.0)  # first of all
    order = torch.from_numpy(np.argsort(distances.numpy(force=True), 1))  # several times as fast as torch's
    places = torch.empty_like(order).scatter_(1, order, torch.arange(len(points)).expand_as(order))
    ranks = (places - 0.5) / max(1, len(points) - 1)
    return (ranks + ranks.T) / 2
