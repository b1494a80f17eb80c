"""Data-parallel training: what the ranks of one run exchange, and which launch a run directory belongs to.

Every rank takes its rows of the same batch and makes the gradient of their mean loss; the mean of these, weighted by rows,
is the gradient of the whole batch. DistributedDataParallel is not used: it wraps the network (names of weights, ``walk`` and
the engine would have to look through it), takes a plain mean over ranks (wrong where the last batch splits unevenly), and
its gain, exchanging while the backward pass still runs, is small where CPUs exchange and compute on the same cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from exitlens.data.batches import as_batch, check_common_order
from exitlens.errors import InputError
from exitlens.io import write_text
from exitlens.launch import count_restarts, name_launch
from exitlens.ranks import Ranks
from exitlens.types.inputs import map_inputs

LAUNCH = "launch"  # in a run directory: which torchrun it belongs to


def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks, rows: int | None) -> float | None:
    """Replaces the gradients, each a mean over this rank's rows, by the mean over the rows of all ranks.

    A parameter that no rank has a gradient for keeps none, so that the optimiser passes over it as in one process.

    Args:
        parameters: all that are trained, in the same order on every rank.
        ranks: who takes part.
        rows: samples that the gradients are of; 0: none of this batch; ``None``: this rank has no batch left.

    Returns:
        The share of the samples that were this rank's; ``None`` if no rank has a batch left.
    """
    if ranks.size == 1:
        return None if rows is None else 1.0
    mine = [float(rows or 0), float(rows is not None), *(float(p.grad is not None and bool(rows)) for p in parameters)]
    found = torch.tensor(mine, dtype=torch.float64)
    ranks.add([found])
    total, active, *present = found.tolist()
    if not active:
        return None
    share = (rows or 0) / total if total else 0.0
    used = [p for p, count in zip(parameters, present, strict=True) if count]
    for p in parameters if not rows else ():
        p.grad = None  # of the batch before
    for p in used:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(share)
    ranks.add([p.grad for p in used if p.grad is not None])
    return share


def iterate_rows(loader: DataLoader[Any], ranks: Ranks) -> Iterator[Any]:
    """This rank's rows of every batch of a user's loader, all of them where its sampler shares the samples out already.

    Raises:
        InputError: for a loader that gives the ranks other batches; while iterating, for one without labels.
    """
    if ranks.size == 1 or isinstance(loader.sampler, DistributedSampler):
        yield from loader
        return
    check_common_order(loader, "train")
    for batch in loader:
        inputs, labels = as_batch(batch)
        yield map_inputs(inputs, itemgetter(ranks.rows)), None if labels is None else labels[ranks.rows]


def copy_weights(net: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the weights and buffers of rank 0.

    Raises:
        InputError: if the ranks have different networks.
    """
    forms = ranks.gather([(name, tuple(t.shape), str(t.dtype)) for name, t in net.state_dict().items()])
    if any(form != forms[0] for form in forms):
        raise InputError(
            "net: the processes have different networks: attach the same exits in each, at modules named in `at`"
        )
    ranks.copy_first(_list_state(net))


def average_buffers(net: nn.Module, ranks: Ranks) -> None:
    """The mean over the ranks of every buffer of floats: the statistics of batch norm, which are of a rank's own rows."""
    if ranks.size > 1:
        buffers = [b for b in _list_state(net) if not isinstance(b, nn.Parameter) and b.is_floating_point()]
        ranks.add(buffers)
        for buffer in buffers:
            buffer.div_(ranks.size)


def _list_state(net: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once (what several modules share, too)."""
    return list({id(t): t for t in net.state_dict(keep_vars=True).values()}.values())


@contextmanager
def use_common_statistics(net: nn.Module, ranks: Ranks) -> Iterator[None]:
    """On GPUs, batch norm takes its statistics over the rows of all ranks (``SyncBatchNorm``, which CPUs do not have)."""
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
