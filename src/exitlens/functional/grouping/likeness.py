"""Whether samples that follow one another look alike, as frames of one video or pictures of one object do.

A certificate counts independent samples. What a network answers cannot tell which samples belong together, but files that do
mostly lie side by side, or come at equal distances (copy 1 of every object, then copy 2). If the samples of a class are
independent, their order says nothing about which of them are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.functional.compact.reading import restore_logits
from exitlens.types import Trace

MOST = 2000  # samples that are compared
CLASSES = 20  # of which they come, the most frequent ones
FEWEST = 10  # of a class: fewer are left out
ALIKE, SURE = 0.45, 6.0  # where it is worth a warning (docs/concepts/guarantees.md says what was seen)


class Likeness(NamedTuple):
    """How much samples at one distance in the order look alike.

    Attributes:
        lag: the distance, among the samples of one answer, at which they do most.
        rank: the mean rank, in [0, 1], of the distance between their logits among those to all samples of that answer;
            0.5 if the order says nothing.
        deviation: how many standard errors that is below 0.5.
    """

    lag: int
    rank: float
    deviation: float

    @property
    def is_suspicious(self) -> bool:
        """Whether this is more than chance, and enough to matter."""
        return self.rank <= ALIKE and self.deviation >= SURE


def measure_likeness(trace: Trace) -> Likeness | None:
    """Of the logits of all exits, within each final answer; ``None`` for fewer than 100 samples to compare.

    Of the :data:`CLASSES` most frequent answers as many samples in a row as make :data:`MOST` in all.
    """
    answers = trace.logits[:, -1].argmax(-1)  # of several labels: the strongest
    counts = answers.bincount()
    classes = [c for c in counts.argsort(descending=True)[:CLASSES].tolist() if counts[c] >= FEWEST]
    sums, pairs = torch.zeros(MOST + 1, dtype=torch.float64), torch.zeros(MOST + 1, dtype=torch.float64)
    total, left = 0, MOST
    for i, c in enumerate(reversed(classes)):  # the rarest first: what they do not use is left to the others
        where = (answers == c).nonzero().flatten()
        length = min(len(where), left // (len(classes) - i))
        start = (len(where) - length) // 2
        ranks = rank_distances(embed(trace, where[start : start + length]))
        one, other = torch.triu_indices(length, length, 1)
        sums.index_add_(0, other - one, ranks[one, other].double())
        pairs.index_add_(0, other - one, torch.ones(len(one), dtype=torch.float64))
        total, left = total + length, left - length
    enough = pairs >= max(30, total / 4)
    if total < 100 or not enough.any():
        return None
    means = sums / pairs.clamp_min(1)
    deviations = torch.where(enough, (0.5 - means) * (12 * pairs).sqrt(), -torch.inf)  # of a uniform rank: 1 / 12
    lag = int(deviations.argmax())
    return Likeness(lag, means[lag].item(), deviations[lag].item())


def embed(trace: Trace, rows: Tensor) -> Tensor:  # (n,) -> (n,K*C)
    """The logits of all exits without what softmax does not see, each exit to the same scale."""
    logits = restore_logits(trace.logits[rows])
    centred = logits - logits.mean(2, keepdim=True)
    return (centred / centred.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-12)).flatten(1)


def rank_distances(points: Tensor) -> Tensor:  # (n,D) -> (n,n)
    """Ranks in [0, 1] of the distance between two points among those to all others, the mean of both sides'."""
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(-1.0)  # first of all
    ranks = (distances.argsort(1).argsort(1) - 0.5) / max(1, len(points) - 1)
    return (ranks + ranks.T) / 2
