"""The validation measure that chooses the best epoch and stops training early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

Monitor = Literal["accuracy", "final_accuracy", "loss"]
MONITORS: tuple[Monitor, ...] = get_args(Monitor)


def score_epoch(row: dict[str, Any], monitor: Monitor) -> float:
    """How good an epoch is on the validation data, more is better.

    ``accuracy`` is the mean over the exits (as a sum), ``final_accuracy`` the final exit's; ``loss`` is the classification
    term of the training loss, over all validation samples.
    """
    if monitor == "loss":
        return -row["val_loss"] if math.isfinite(row["val_loss"]) else -math.inf
    return float(sum(row["accuracy"]) if monitor == "accuracy" else row["accuracy"][-1])


def find_best_epoch(history: Sequence[dict[str, Any]], monitor: Monitor) -> int:
    """The first of the best epochs, from 1; 0 before the first."""
    scores = [score_epoch(row, monitor) for row in history]
    return scores.index(max(scores)) + 1 if scores else 0


def is_exhausted(history: Sequence[dict[str, Any]], monitor: Monitor, patience: int | None) -> bool:
    """Whether the last ``patience`` epochs brought nothing better than what came before."""
    return patience is not None and len(history) - find_best_epoch(history, monitor) >= patience
