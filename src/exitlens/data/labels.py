"""Labels of a data set: one integer a sample, each the number of a class name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from exitlens.errors import InputError, require


def check_class_labels(labels: Tensor, count: int, classes: Sequence[str], kind: str) -> Tensor:
    """The labels as ``(N,)`` ``int64``.

    Args:
        labels: ``(N,)`` integers.
        count: N.
        classes: their names, in label order.
        kind: what has them, for the message: ``image`` or ``text``.

    Raises:
        InputError: for another type, shape or number, or for values that are no class.
    """
    require(labels, Tensor, "labels")
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"labels: expected (N,) integers, got {tuple(labels.shape)} {labels.dtype}")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"labels: expected values in [0, {len(classes)}), one a class name, got {low} to {high}")
    if len(labels) != count:
        raise InputError(f"labels: expected {count}, one per {kind}; got {len(labels)}")
    return labels.long()
