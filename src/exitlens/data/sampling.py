"""Skewed classes: a training set's labels, weights that balance them, and an order in which all come equally often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from exitlens.errors import InputError


def read_labels(data: Any, purpose: str) -> Tensor:
    """The labels ``(N,)`` of a data set, without reading its samples.

    They are looked for as ``data.labels`` (sets of ours), ``data.targets`` (torchvision's) and in a ``TensorDataset``.

    Raises:
        InputError: for a data set that does not have them at hand; ``purpose`` is the argument that needs them.
    """
    found = getattr(data, "labels", getattr(data, "targets", None))
    if found is None and isinstance(data, TensorDataset) and len(data.tensors) > 1:
        found = data.tensors[1]
    try:
        labels = None if found is None else torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        labels = None
    if labels is not None and labels.ndim == 2:
        raise InputError(f"{purpose}: it is for one class a sample, these data have several labels: leave it out")
    if labels is None or labels.shape != (len(data),) or labels.is_floating_point():
        raise InputError(f"{purpose}: needs the training labels: give a data set with .labels, (N,) integers, not a loader")
    return labels


def weigh_classes(labels: Tensor, classes: int) -> tuple[float, ...]:  # (N,) integers
    """``N / (C * samples of the class)``: with these weights every class counts alike, and the mean over samples is 1.

    Raises:
        InputError: for a label that is no class, or a class without a sample.
    """
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"class_weights: expected training labels in [0, {classes}), got {low} to {high}")
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(f"class_weights: classes {missing[:5]} have no training sample: give numbers, or leave them out")
    return tuple((len(labels) / (classes * counts.double())).tolist())


def draw_order(data: Any, seed: int, balanced: bool = False) -> list[int]:
    """Indices of one epoch in an order that depends on the seed only: all of them once, or the classes equally often.

    Balanced, the epoch is as long. A class of many samples shows some of them once; of a class of few, every sample comes
    equally often, up to one.
    """
    count = len(data)
    generator = torch.Generator().manual_seed(seed)
    if not balanced:
        return torch.randperm(count, generator=generator).tolist()
    labels = read_labels(data, "balanced")
    members = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    extra = torch.randperm(len(members), generator=generator)[: count % len(members)].tolist()
    drawn = []
    for i, rows in enumerate(members):
        left = count // len(members) + (i in extra)
        while left > 0:
            drawn.append(rows[torch.randperm(len(rows), generator=generator)[:left]])
            left -= len(drawn[-1])
    order = torch.cat(drawn)
    return order[torch.randperm(count, generator=generator)].tolist()
