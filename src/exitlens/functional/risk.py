"""Risks per sample at every exit, and their mean under a routing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from exitlens.types import Trace


def predictions(trace: Trace) -> Tensor:  # -> (N,K)
    """The class each exit answers (a temperature never changes it)."""
    return trace.logits.argmax(-1)


def accuracy_drop(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[exit wrong] - 1[final wrong]``, in {-1, 0, 1}; its mean is the accuracy lost by answering at that exit."""
    labels = trace.require_labels("accuracy_drop")
    wrong = (predictions(trace) != labels[:, None]).float()
    return wrong - wrong[:, -1:]


def disagreement(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[answer differs from the final exit's]``; needs no labels."""
    answers = predictions(trace)
    return (answers != answers[:, -1:]).float()


def sketch(trace: Trace, size: int = 64) -> list[str]:
    """The ``size`` smallest hashes of single samples: two traces that share many samples share some of them."""
    return sorted(_hashes(trace))[:size]


def distinct(trace: Trace) -> int:
    """How many samples have logits of their own: repeated samples are no independent draws."""
    return len(set(_hashes(trace)))


def overlaps(trace: Trace, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether samples of which a record holds fingerprint or sketch are in the trace, as far as their logits are equal."""
    if any(record.get("data") == trace.fingerprint() for record in records):
        return True
    theirs = {word for record in records for word in record.get("sketch", ())}
    return bool(theirs) and not theirs.isdisjoint(_hashes(trace))


def _hashes(trace: Trace) -> list[str]:
    rows = trace.logits.contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]


def select_exits(values: Tensor, exits: Tensor) -> Tensor:  # (N,K), (N,) -> (N,)
    """The value of every sample at the exit it takes."""
    return values.gather(1, exits[:, None]).squeeze(1)
