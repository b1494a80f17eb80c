"""Data-parallel training: what the ranks of a run exchange.

Every rank computes the gradient of the mean loss of its rows of the same batch; the mean of these gradients, weighted by
rows, is the gradient of the whole batch. DistributedDataParallel is not used: it wraps the network, takes a plain mean over
ranks (wrong if the last batch splits unevenly), and gains little where CPUs exchange and compute on the same cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from exitlens.data.batches import Batch, as_batch, check_common_order
from exitlens.errors import InputError
from exitlens.ranks import DistributedContext, fill_buckets
from exitlens.types.inputs import count_rows, map_inputs


class SharedGradients:
    """Averages the gradients of ``parameters`` over the rows of all ranks, in memory that it reuses: new memory is slow."""

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: DistributedContext) -> None:
        self.parameters, self.ranks = list(parameters), ranks
        self._slots: list[Tensor] = []  # one per parameter, in its memory format
        self._buckets: list[tuple[Tensor, list[int]]] = []  # with the numbers of their parameters
        for held in fill_buckets(self.parameters) if ranks.size > 1 else ():
            sizes = [self.parameters[i].numel() for i in held]
            flat = self.parameters[held[0]].detach().new_empty(sum(sizes))
            self._buckets.append((flat, held))
            for i, part in zip(held, flat.split(sizes), strict=True):
                strides = torch.empty_like(self.parameters[i], device="meta").stride()
                self._slots.append(part.as_strided(self.parameters[i].shape, strides, part.storage_offset()))

    def average(self, rows: int) -> float | None:
        """Replace the gradients, each a mean over this rank's ``rows``, by the mean over the rows of all ranks.

        A parameter without a gradient on any rank keeps none. A rank with no batch left passes 0 rows. Returns this rank's
        share of the samples; ``None`` if no rank has a batch left.
        """
        if self.ranks.size == 1:
            return 1.0 if rows else None
        total, *present = self.ranks.add_floats([rows, *(p.grad is not None for p in self.parameters)])
        if not total:
            return None
        for p, slot in zip(self.parameters, self._slots, strict=True):
            if p.grad is None:
                slot.zero_()
            else:
                torch.mul(p.grad, rows / total, out=slot)
        self.ranks.add([flat for flat, held in self._buckets if any(present[i] for i in held)])
        for p, slot, count in zip(self.parameters, self._slots, present, strict=True):
            p.grad = slot if count else None
        return rows / total


class SharedLoader:
    """Gives this rank's rows of the batches of a user's loader, or all rows if a sampler shares the samples already."""

    def __init__(self, loader: DataLoader[Any], ranks: DistributedContext) -> None:
        self.loader = loader
        self.rows = slice(None) if isinstance(loader.sampler, DistributedSampler) else ranks.rows
        if ranks.size > 1 and self.rows == ranks.rows:
            check_common_order(loader, "train")

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in map(as_batch, self.loader):
            labels = None if batch.labels is None else batch.labels[self.rows]
            inputs = map_inputs(batch.inputs, itemgetter(self.rows))
            if count_rows(inputs):
                yield Batch(inputs, labels)


def copy_weights(net: nn.Module, ranks: DistributedContext) -> None:
    """Give every rank the weights and buffers of rank 0."""
    state = net.state_dict(keep_vars=True)
    forms = ranks.gather([(name, tuple(t.shape), str(t.dtype)) for name, t in state.items()])
    if any(form != forms[0] for form in forms):
        raise InputError(
            "net: expected the same network in every process. Fix: attach the same exits in each, at modules named in `at`."
        )
    ranks.copy_first(list({id(t): t for t in state.values()}.values()))


def average_statistics(net: nn.Module, state: Mapping[str, Tensor], ranks: DistributedContext) -> None:
    """Average the float buffers of a network's state (batch-norm statistics) over the ranks, in place."""
    if ranks.size > 1:
        names = dict(net.named_buffers(remove_duplicate=False)).keys() & state.keys()
        buffers = list({id(state[name]): state[name] for name in sorted(names) if state[name].is_floating_point()}.values())
        ranks.add(buffers)
        for buffer in buffers:
            buffer.div_(ranks.size)


@contextmanager
def use_common_statistics(net: nn.Module, ranks: DistributedContext) -> Iterator[None]:
    """On GPUs, compute batch-norm statistics over the rows of all ranks (``SyncBatchNorm``, which CPUs do not have)."""
    if ranks.size == 1 or not any(p.is_cuda for p in net.parameters()):
        yield
        return
    places = [
        (parent, name, child)
        for parent in net.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, nn.SyncBatchNorm)
    ]
    synced = {id(child): nn.SyncBatchNorm.convert_sync_batchnorm(child) for _, _, child in places}
    for parent, name, child in places:
        setattr(parent, name, synced[id(child)].train(child.training))
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child.train(synced[id(child)].training))
