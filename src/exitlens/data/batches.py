"""Batches of inputs and labels from whatever a user has: a data set, a loader, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from exitlens.data.sampling import draw_order
from exitlens.errors import InputError
from exitlens.types.inputs import Inputs, count_rows, map_inputs, split_rows

Batch = tuple[Inputs, Tensor | None]


def iterate_batches(source: Any, batch_size: int = 64, device: torch.device | None = None) -> Iterator[Batch]:
    """Yields ``(inputs, labels or None)`` in order, on ``device`` if one is given.

    Args:
        source: a ``Dataset`` (batched here), a ``DataLoader`` or another iterable of batches, or one tensor of images (or
            a dict of tensors, as texts have).
        batch_size: of a ``Dataset`` and of tensors.
    """
    for batch in _split(source, batch_size):
        yield as_batch(batch, device)


def iterate_inputs(source: Any, batch_size: int = 64, device: torch.device | None = None) -> Iterator[Inputs]:
    """The inputs alone; whatever comes with them (labels, file names, nothing) is left alone."""
    for batch in _split(source, batch_size):
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        yield as_batch(inputs, device)[0]


def _split(source: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(source, Tensor) or _is_inputs(source):
        return split_rows(source, batch_size)
    if isinstance(source, Dataset):
        return DataLoader(source, batch_size=batch_size, generator=torch.Generator())  # leaves the global one alone
    if not isinstance(source, Iterable):
        raise InputError(f"data: expected a Dataset, a DataLoader or an iterable of batches, got {type(source).__name__}")
    return source


def as_batch(batch: Any, device: torch.device | None = None) -> Batch:
    """One batch as ``(inputs, labels or None)``, on ``device`` if one is given."""
    if isinstance(batch, Tensor) or _is_inputs(batch):
        return map_inputs(batch, lambda t: t.to(device)), None
    if isinstance(batch, list | tuple) and len(batch) >= 2 and (isinstance(batch[0], Tensor) or _is_inputs(batch[0])):
        return map_inputs(batch[0], lambda t: t.to(device)), torch.as_tensor(batch[1]).to(device)
    raise InputError(f"data: expected batches of inputs or (inputs, labels), got {type(batch).__name__}")


def _is_inputs(value: Any) -> bool:
    """Whether it is a dict of tensors: inputs by name."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def count_batches(source: Any, batch_size: int = 64) -> int | None:
    """How many batches :func:`iterate_batches` will yield, if that is known."""
    try:
        length = len(source)
    except TypeError:
        return None
    if _is_inputs(source):
        length = count_rows(source)
    return -(-length // batch_size) if isinstance(source, Tensor | Dataset | Mapping) else length


def make_epoch_loader(
    data: Dataset[Any], batch_size: int, seed: int, workers: int = 0, balanced: bool = False
) -> DataLoader[Any]:
    """One epoch in an order that depends on ``seed`` only; an incomplete last batch is left out of a longer epoch."""
    count = len(data)  # type: ignore[arg-type]
    if count == 0:
        raise InputError("train: the data set is empty: it needs at least one sample")
    order = draw_order(data, seed, balanced)
    groups = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(groups) > 1 and len(groups[-1]) < batch_size:
        groups.pop()
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_sampler=groups, num_workers=workers, generator=generator)
