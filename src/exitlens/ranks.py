"""Processes that share one piece of work (``torch.distributed``).

All exchange goes through a :class:`DistributedContext`; in a process that is alone its methods do nothing, so that callers
need no branch. One rule holds everywhere: a rank that fails tells the others (:meth:`DistributedContext.together`), and all
of them raise. Nobody waits for a rank that gave up.
"""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from exitlens import errors
from exitlens.errors import DistributedError, ExitlensError, InputError, require
from exitlens.launch import count_restarts, is_launched

T = TypeVar("T")
TIMEOUT = "EXITLENS_TIMEOUT_S"  # how long a rank waits for the others, in seconds
BUCKET = 4_000_000  # numbers that travel together


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that share the work; ``DistributedContext()`` is a process that is alone.

    Attributes:
        rank: the number of this process, from 0; rank 0 alone prints and writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True if this process prints and writes."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This rank's rows of a batch that all ranks have."""
        return slice(self.rank, None, self.size)

    def vary_seed(self, seed: int) -> int:
        """Return the seed of this rank's own random numbers: ``seed`` at rank 0, a different one at every other rank."""
        return (seed + self.rank * 0x9E3779B97F4A7C15) % 2**63 if self.rank else seed

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run what every rank does on its own; an error of one rank is raised on all.

        An :class:`ExitlensError` keeps its class; any other error is a :class:`DistributedError` on the other ranks.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except DistributedError:
            raise  # the ranks have lost one another, or all know of it
        except Exception as error:
            failure = error
        failed = torch.tensor([0 if failure is None else 1])
        self._run(lambda: dist.all_reduce(failed))
        if not failed.item():
            return
        told = None
        if failure is not None:  # by the name of our class that it derives from, if any
            ours = (base.__name__ for base in type(failure).__mro__ if getattr(errors, base.__name__, None) is base)
            told = next(ours, type(failure).__name__), str(failure)
        failures = self.gather(told)
        if isinstance(failure, ExitlensError):
            failure.is_told = True
        if failure is not None:
            raise failure
        rank, (name, text) = next((i, each) for i, each in enumerate(failures) if each is not None)
        known: type[ExitlensError] | None = getattr(errors, name, None)
        rebuilt = DistributedError() if known is None else known.__new__(known)
        rebuilt.args = (f"process {rank} of {self.size}: {text if known else f'{name}: {text}'}",)
        rebuilt.is_told = True
        raise rebuilt

    def share(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on every rank; its error is the error of all."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        with self.together():
            if self.is_first:
                made[0] = make()
        self._run(lambda: dist.broadcast_object_list(made, src=0))
        return made[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._run(lambda: dist.all_gather_object(values, value))
        return values

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks, bit for bit the same on all."""
        if self.size > 1:
            self._in_buckets(tensors, dist.all_reduce)

    def add_floats(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each number over the ranks."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self.add([sums])
        return sums.tolist()

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by that of rank 0."""
        if self.size > 1:
            self._in_buckets(tensors, lambda flat: dist.broadcast(flat, src=0))

    def hand_over(self, items: Iterator[T], take: Callable[[T], None]) -> None:
        """Call ``take`` at rank 0 for the items of all ranks, in turn, with one item of each in transit at a time."""
        if self.size == 1:
            for each in items:
                take(each)
            return
        arrived: list[T | None] = []
        is_over = False
        while not is_over:
            with self.together():
                for received in arrived:
                    if received is not None:
                        take(received)
                item = next(items, None)
            arrived = [None] * self.size if self.is_first else []
            self._run(lambda item=item, into=arrived: dist.gather_object(item, into or None, dst=0))  # type: ignore[misc]
            is_over = not self.add_floats([item is not None])[0]

    def _in_buckets(self, tensors: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
        """Exchange tensors flat and a few million numbers at a time: one message each would cost more than its contents."""
        for held in fill_buckets(tensors):
            bucket = [tensors[i].detach() for i in held]
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._run(partial(exchange, bucket[0].view(-1)))
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._run(partial(exchange, flat))
            for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def _run(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except (RuntimeError, ValueError) as error:  # torch.distributed: the connection closed, or time ran out
            reason = str(error).strip().partition("\n")[0]
            raise DistributedError(
                f"process {self.rank} of {self.size} lost the others ({reason}): one of them ended or waited too long. Fix: "
                f"start again (exitlens fit --resume goes on from the last epoch); {TIMEOUT} sets the seconds to wait."
            ) from error


def fill_buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the places of neighbouring tensors of one dtype and device, :data:`BUCKET` numbers and more together."""
    held: list[int] = []
    numbers = 0
    for i, tensor in enumerate(tensors):
        first = tensors[held[0]] if held else tensor
        if numbers >= BUCKET or (tensor.dtype, tensor.device) != (first.dtype, first.device):
            yield held
            held, numbers = [], 0
        held.append(i)
        numbers += tensor.numel()
    if held:
        yield held


ALONE = DistributedContext()


def find_ranks(given: DistributedContext | None = None) -> DistributedContext:
    """Return ``given``, or this process's place in the process group, which it joins if ``torchrun`` asks for it.

    The group is gloo for tensors on CPUs, NCCL if every process has a GPU; ranks wait 30 minutes, or ``EXITLENS_TIMEOUT_S``.
    """
    require(given, DistributedContext | None, "ranks")
    if given is not None or not dist.is_available():
        return given or ALONE
    if not dist.is_initialized():
        if not is_launched():
            return ALONE
        _join()
    if dist.get_world_size() > 1 and dist.get_backend() == "nccl":
        raise InputError(
            "backend: expected one that also exchanges tensors on the CPU, got nccl. "
            'Fix: init_process_group("cpu:gloo,cuda:nccl").'
        )
    return DistributedContext(dist.get_rank(), dist.get_world_size())


def _join() -> None:
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise InputError(f"{TIMEOUT}: expected seconds above 0, got {text!r}")
    local, backend = int(os.environ.get("LOCAL_RANK", "0")), "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() > local:
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    # Imported before there is a group: defaults of its functions would keep that group alive beyond leave(), and its threads
    # could call Python after its end, which ends the process by SIGABRT.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))  # type: ignore[attr-defined]
        # torchrun keeps one store over all its restarts: without a prefix, processes could read what earlier ones wrote
        store = dist.PrefixStore(f"exitlens/{count_restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"torchrun: the processes did not find one another ({error}). Fix: start them again."
        ) from error
    atexit.register(leave)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
