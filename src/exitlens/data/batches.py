"""Batches of inputs and labels from whatever a user has: a data set, a loader, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Subset

from exitlens.errors import InputError
from exitlens.ranks import ALONE, Ranks
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


def take_share(source: Any, batch_size: int, ranks: Ranks, name: str = "data") -> Any:
    """This rank's whole batches of a source that every rank has; those of all ranks, one after the other, are the source.

    A data set is not read beyond this rank's part; of a ``DataLoader`` or list every rank reads all batches.

    Raises:
        InputError: for an iterable whose length or order the ranks cannot know.
    """
    if ranks.size == 1:
        return source
    count = count_batches(source, batch_size)
    if count is None:
        raise InputError(f"{name}: several processes share it, so it needs a length: pass a Dataset, or a list of batches")
    mine = ranks.share_of(count)
    if isinstance(source, Dataset):
        rows = range(mine.start * batch_size, min(mine.stop * batch_size, len(source)))  # type: ignore[arg-type]
        return source.subset(torch.arange(rows.start, rows.stop)) if hasattr(source, "subset") else Subset(source, rows)
    check_common_order(source, name)
    return islice(_split(source, batch_size), mine.start, mine.stop)


def check_common_order(source: Any, name: str) -> None:
    """Raises :class:`InputError` for a loader that gives every rank other batches, or the same ones in another order."""
    sampler = getattr(source, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        raise InputError(f"{name}: its sampler is a DistributedSampler, the processes share it already: pass the data set")
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        raise InputError(
            f"{name}: it shuffles by the global random state, which every process has its own of: pass the data set, or a "
            "loader with generator=torch.Generator()"
        )


def make_epoch_loader(
    data: Dataset[Any], batch_size: int, seed: int, workers: int = 0, ranks: Ranks = ALONE
) -> DataLoader[Any]:
    """One epoch in an order that depends on ``seed`` only; an incomplete last batch is left out of a longer epoch.

    Of several ranks, each gets its rows of every batch.
    """
    count = len(data)  # type: ignore[arg-type]
    if count == 0:
        raise InputError("train: the data set is empty: it needs at least one sample")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(groups) > 1 and len(groups[-1]) < batch_size:
        groups.pop()
    groups = [rows for group in groups if (rows := group[ranks.rows])]
    generator = torch.Generator().manual_seed(ranks.vary_seed(seed))
    return DataLoader(data, batch_sampler=groups, num_workers=workers, generator=generator)
