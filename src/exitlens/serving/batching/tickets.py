"""One request on its way: what it asks for, and its answers as they come."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from exitlens.errors import RequestError
from exitlens.model.cutting.stage import Activations
from exitlens.types.policies import DEFAULT

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Terms:
    """What a request asks of its answers.

    Attributes:
        policy: by its name in the bundle.
        last_exit: samples leave there at the latest.
        min_confidence: exits before the last answer only with a score that reaches this, too.
        deadline: when the answer is to be there (``time.monotonic``); infinite: no matter when.
        attention: give the map of the exit that answered.
    """

    policy: str = DEFAULT
    last_exit: int | None = None
    min_confidence: float = 0.0
    deadline: float = math.inf
    attention: bool = False

    @property
    def changes_policy(self) -> bool:
        """Whether answers may differ from the policy's own, so that what was promised about it does not hold."""
        return self.last_exit is not None or self.min_confidence > 0 or self.deadline < math.inf


class Ticket:
    """The samples of one request, and what is known of their answers.

    Attributes:
        labels, exits: ``(n,)`` int64; of several labels ``(n,C)`` bool. confidence: ``(n,)``. probabilities: ``(n,C)``.
        maps: of each sample, where asked for.
        limited: ``(n,)`` bool: the request's own limits ended it, not the policy.
        left: samples without an answer. error: why there is none. since, done: when it came and ended.
        first: place of the first sample.
    """

    __slots__ = (
        "activations",
        "confidence",
        "done",
        "error",
        "exits",
        "first",
        "kept",
        "labels",
        "left",
        "limited",
        "maps",
        "probabilities",
        "receiver",
        "since",
        "terms",
    )

    def __init__(
        self, activations: Activations, terms: Terms, num_classes: int, receiver: Any = None, several: bool = False
    ) -> None:
        count = len(activations[0])
        self.activations, self.terms, self.receiver = activations, terms, receiver
        self.labels: Array = np.empty((count, num_classes), np.bool_) if several else np.empty(count, np.int64)
        self.exits = np.full(count, -1, np.int64)
        self.confidence, self.probabilities = np.empty(count, np.float32), np.empty((count, num_classes), np.float32)
        self.limited = np.zeros(count, np.bool_)
        self.maps: list[Tensor | None] = [None] * count if terms.attention else []
        self.left = count
        self.error: Exception | None = None
        self.since = self.done = time.monotonic()
        self.first = -1
        self.kept: dict[int, tuple[Any, ...]] = {}  # by row, an answer that will do if time runs out

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_new(self) -> bool:
        """Whether nobody has taken it in, or ended it."""
        return self.first < 0 and self.left > 0

    def answer(self, row: int, exit_: int, label: Any, score: float, probabilities: Array, attention: Tensor | None) -> None:
        """Sets the answer of one sample."""
        self.labels[row], self.exits[row], self.confidence[row] = label, exit_, score
        self.probabilities[row] = probabilities
        if self.maps:
            self.maps[row] = attention
        self.left -= 1

    def answer_by_kept(self) -> bool:
        """Gives samples without an answer the last one that an exit had for them; false where one has none at all."""
        rows = np.flatnonzero(self.exits < 0).tolist()
        if not all(row in self.kept for row in rows):
            return False
        for row in rows:
            self.answer(row, *self.kept[row])
            self.limited[row] = True
        return True

    def fail(self, error: Exception) -> None:
        """Ends without answers."""
        self.error, self.left = error, 0

    def check_finite(self) -> None:
        """Fails with :class:`RequestError` where the network computed NaN or infinity for this request's samples."""
        if self.error is None and not math.isfinite(self.probabilities.sum()):
            self.fail(
                RequestError("inputs: the answers to these are NaN or infinite: check that they are normalised", status=422)
            )
