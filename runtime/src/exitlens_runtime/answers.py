"""Answers: what a batch gets, and what is filled in exit by exit while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exitlens_runtime.placing import place
from exitlens_runtime.routing import Array


@dataclass(frozen=True)
class Prediction:
    """Answers in the order of the input: the fields of ``exitlens.Prediction``, as NumPy arrays.

    Attributes:
        labels: ``(B,)`` predicted class; of several labels ``(B,C)`` bool. exits: ``(B,)`` the exit that answered.
        confidence: ``(B,)`` the score that was compared with the threshold, at the exit that answered.
        probabilities: ``(B,C)`` softmax (of several labels sigmoid) of the logits over the exit's temperature.
        attention: per sample the attention map ``S`` of the exit that answered, placed in the image, or ``None``.
        index: ``(B,)`` the samples' places in the batch, or in the stream.
        divergence_estimate, last_divergence: ``(B,)`` where the policy has a gate, as in the library.
    """

    labels: Array
    exits: Array
    confidence: Array
    probabilities: Array
    attention: tuple[Array, ...] | None = None
    index: Array | None = None
    divergence_estimate: Array | None = None
    last_divergence: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Answers:
    """Answers of a batch of ``count`` samples that are filled in exit by exit.

    Attributes:
        attention: whether maps are kept. gated: whether the policy has a gate. several: labels, not one class.
    """

    count: int
    classes: int
    attention: bool
    gated: bool
    several: bool = False
    maps: list[Array | None] = field(init=False)

    def __post_init__(self) -> None:
        self.exits, self.scores = np.zeros(self.count, np.int64), np.zeros(self.count, np.float32)
        self.p = np.zeros((self.count, self.classes), np.float32)
        self.maps = [None] * self.count if self.attention else []
        if self.gated:
            self.estimates, self.last = (np.full(self.count, math.nan, np.float32) for _ in range(2))

    def fill(
        self, k: int, where: Array, p: Array, scores: Array, maps: Array, offset: Sequence[float], trust: Array | None
    ) -> None:
        """The samples ``where`` are answered at exit k; ``trust``: what the gate estimates of their maps."""
        self.exits[where], self.scores[where], self.p[where] = k, scores, p
        if trust is not None:
            self.estimates[where] = trust
        if self.attention:
            for i, one in zip(where.tolist(), place(maps, offset), strict=True):
                self.maps[i] = one

    def close(self) -> Prediction:
        """All together."""
        maps = tuple(one for one in self.maps if one is not None) if self.attention else None
        estimates, last = (self.estimates, self.last) if self.gated else (None, None)
        index = np.arange(self.count)
        labels = self.p >= 0.5 if self.several else self.p.argmax(1)
        return Prediction(labels, self.exits, self.scores, self.p, maps, index, estimates, last)
