"""Data-parallel training: what the ranks of one run exchange, and which launch a run directory belongs to.

Every rank takes its rows of the same batch and makes the gradient of their mean loss; the mean of these, weighted by rows,
is the gradient of the whole batch. DistributedDataParallel is not used: it wraps the network (names of weights, ``walk`` and
the engine would have to look through it), takes a plain mean over ranks (wrong where the last batch splits unevenly), and
its gain, exchanging while the backward pass still runs, is small where CPUs exchange and compute on the same cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from exitlens.data.batches import Batch, as_batch, check_common_order
from exitlens.errors import InputError
from exitlens.io import write_text
from exitlens.launch import count_restarts, name_launch
from exitlens.ranks import Ranks, fill_buckets
from exitlens.types.inputs import count_rows, map_inputs

LAUNCH = "launch"  # in a run directory: which torchrun it belongs to


class SharedGradients:
    """Gradients, averaged over the rows of all ranks.

    The sums are made in memory that is kept from step to step: memory that is new in every step would cost as much time
    again as the sums themselves.

    Args:
        parameters: all that are trained, in the same order on every rank.
        ranks: who takes part.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.parameters, self.ranks = list(parameters), ranks
        self._slots: list[Tensor] = []  # of each parameter, in its memory format
        self._buckets: list[tuple[Tensor, list[int]]] = []  # and the parameters that have their slots there

    def average(self, rows: int) -> float | None:
        """Replaces the gradients, each a mean over this rank's rows, by the mean over the rows of all ranks.

        A parameter that no rank has a gradient for keeps none, so that the optimiser passes over it as in one process.

        Args:
            rows: samples that the gradients are of; 0: this rank has no batch left, and no gradients.

        Returns:
            The share of the samples that were this rank's; ``None`` if no rank has a batch left.
        """
        if self.ranks.size == 1:
            return 1.0 if rows else None
        total, *present = self.ranks.add_floats([rows, *(p.grad is not None for p in self.parameters)])
        if not total:
            return None
        if not self._buckets:
            self._make_buckets()
        for p, slot in zip(self.parameters, self._slots, strict=True):
            if p.grad is None:
                slot.zero_()
            else:
                torch.mul(p.grad, rows / total, out=slot)
        self.ranks.add([flat for flat, held in self._buckets if any(present[i] for i in held)])
        for p, slot, count in zip(self.parameters, self._slots, present, strict=True):
            p.grad = slot if count else None
        return rows / total

    def _make_buckets(self) -> None:
        """Gives every parameter its place: a few million numbers of one kind travel together."""
        for held in fill_buckets(self.parameters):
            sizes = [self.parameters[i].numel() for i in held]
            flat = self.parameters[held[0]].detach().new_empty(sum(sizes))
            self._buckets.append((flat, held))
            for i, part in zip(held, flat.split(sizes), strict=True):
                self._slots.append(_shape_like(part, self.parameters[i]))


def _shape_like(flat: Tensor, parameter: Tensor) -> Tensor:
    """A view of as many numbers in the shape and memory format of a parameter."""
    strides = torch.empty_like(parameter, device="meta").stride()
    return flat.as_strided(parameter.shape, strides, flat.storage_offset())


class SharedLoader:
    """A user's loader, of whose batches this rank takes its rows; all of them where a sampler shares the samples already.

    Raises:
        InputError: for a loader that gives the ranks other batches.
    """

    def __init__(self, loader: DataLoader[Any], ranks: Ranks) -> None:
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


def copy_weights(net: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the weights and buffers of rank 0.

    Raises:
        InputError: if the ranks have different networks.
    """
    state = net.state_dict(keep_vars=True)
    forms = ranks.gather([(name, tuple(t.shape), str(t.dtype)) for name, t in state.items()])
    if any(form != forms[0] for form in forms):
        raise InputError(
            "net: the processes have different networks: attach the same exits in each, at modules named in `at`"
        )
    ranks.copy_first(list({id(t): t for t in state.values()}.values()))


def average_statistics(net: nn.Module, state: Mapping[str, Tensor], ranks: Ranks) -> None:
    """The mean over the ranks of every buffer of floats in a state of the network, in place.

    These are the statistics of batch norm, which every rank takes over its own rows.
    """
    if ranks.size > 1:
        names = dict(net.named_buffers(remove_duplicate=False)).keys() & state.keys()
        buffers = list({id(state[name]): state[name] for name in sorted(names) if state[name].is_floating_point()}.values())
        ranks.add(buffers)
        for buffer in buffers:
            buffer.div_(ranks.size)


@contextmanager
def use_common_statistics(net: nn.Module, ranks: Ranks) -> Iterator[None]:
    """On GPUs, batch norm takes its statistics over the rows of all ranks (``SyncBatchNorm``, which CPUs do not have)."""
    if ranks.size == 1 or not _is_on_gpu(net):
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


def _is_on_gpu(net: nn.Module) -> bool:
    return any(p.is_cuda for p in net.parameters())


def check_batch_size(batch_size: int, ranks: Ranks) -> None:
    """Raises :class:`InputError` for a batch that does not have a row for every rank."""
    if batch_size < ranks.size:
        raise InputError(
            f"batch_size: {batch_size} samples in all cannot be shared by {ranks.size} processes: make it larger"
        )


def record_launch(out_dir: Path) -> None:
    """Notes in a run's directory which ``torchrun`` works on it, if one does."""
    if name := name_launch():
        write_text(out_dir / LAUNCH, name + "\n")


def is_restarted(out_dir: Path) -> bool:
    """Whether ``torchrun`` has restarted its processes, after one of them ended, while they worked on this directory."""
    written = out_dir / LAUNCH
    return count_restarts() > 0 and written.is_file() and written.read_text().strip() == name_launch()
