"""Batches of inputs and labels from whatever a user has: a data set, a loader, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Subset

from exitlens.data.checks import check_bad
from exitlens.data.lazy import LazySet
from exitlens.data.loading.workers import choose_workers
from exitlens.data.sampling import draw_order
from exitlens.errors import InputError
from exitlens.ranks import ALONE, Ranks
from exitlens.types.inputs import Inputs, count_rows, map_inputs, split_rows

Plan = Sequence[Sequence[int]]  # indices of the samples of every batch


class Batch(NamedTuple):
    """Inputs of B samples, and their labels ``(B,)`` and groups ``(B,)`` ``int64`` where there are any."""

    inputs: Inputs
    labels: Tensor | None
    groups: Tensor | None = None


class Loader(Protocol):
    """Batches that can be counted before they are read."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def iterate_batches(
    source: Any,
    batch_size: int = 64,
    device: torch.device | None = None,
    workers: int | None = None,
    name: str = "data",
) -> Iterator[Batch]:
    """Yields batches in order, on ``device`` if one is given.

    Args:
        source: a ``Dataset`` (batched here; the ``groups`` of a set of ours come along), a ``DataLoader`` or another
            iterable of batches, or one tensor of images (or a dict of tensors, as texts have).
        batch_size: of a ``Dataset`` and of tensors.
        workers: processes that decode a lazy set or read a ``Dataset``; by default one for each core for lazy sets, else 0.
        name: what errors call the source.

    Raises:
        InputError: for anything else; DataError: for samples that cannot be read.
    """
    for batch in _split(source, batch_size, workers, name):
        yield as_batch(batch, device, name)


def iterate_inputs(source: Any, batch_size: int = 64, device: torch.device | None = None) -> Iterator[Inputs]:
    """The inputs alone; whatever comes with them (labels, file names, nothing) is left alone."""
    for batch in _split(source, batch_size):
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        yield as_batch(inputs, device)[0]


def _split(source: Any, batch_size: int, workers: int | None = None, name: str = "data") -> Iterable[Any]:
    if isinstance(source, Tensor) or _is_inputs(source):
        return split_rows(source, batch_size)
    if isinstance(source, LazySet):
        return LazyLoader(source, plan_in_order(len(source), batch_size), workers)
    if isinstance(source, Dataset):
        return _load_in_order(source, batch_size, workers or 0)
    if not isinstance(source, Iterable):
        raise InputError(f"{name}: expected a Dataset, a DataLoader or an iterable of batches, got {type(source).__name__}")
    return source


def plan_in_order(count: int, batch_size: int) -> Plan:
    """Batches of all samples, one after the other."""
    return [range(at, min(at + batch_size, count)) for at in range(0, count, batch_size)]


def _load_in_order(data: Dataset[Any], batch_size: int, workers: int) -> Iterator[Any]:
    loader = DataLoader(data, batch_size, num_workers=workers, generator=torch.Generator())  # leaves the global one alone
    groups = getattr(data, "groups", None)
    if not isinstance(groups, Tensor):
        yield from loader
        return
    for at, batch in enumerate(loader):
        yield as_batch(batch)._replace(groups=groups[at * batch_size : (at + 1) * batch_size])


class LazyLoader:
    """The batches of a lazy set, decoded in processes of their own, the same whatever their number.

    A batch of which no sample can be read is left out.

    Args:
        data: the set.
        plan: indices of the samples of every batch.
        workers: processes, by default those of the set.
        least: batches that hold fewer samples, because others cannot be read, are left out.
    """

    def __init__(self, data: LazySet, plan: Plan, workers: int | None = None, least: int = 1) -> None:
        self.data, self.plan, self.least = data, plan, least
        self.workers = choose_workers(data.workers if workers is None else workers, len(plan))

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        data, bad, some = self.data, list[str](), False
        indices = [torch.as_tensor(part) for part in self.plan]
        rows = [data.rows[part].tolist() for part in indices]
        for part, found in zip(indices, data.decode(rows, self.workers), strict=True):
            data.check(found)
            bad += [reason for _, reason in found.bad]
            if len(found.good) < min(self.least, len(part)) or not found.good:
                continue
            some, kept = True, part[found.good]
            groups = None if data.groups is None else data.groups[kept]
            yield Batch(data.preprocess.normalise(found.values), data.labels[kept], groups)
        if not some:
            check_bad(bad, len(bad), skip_bad=True)


def as_batch(batch: Any, device: torch.device | None = None, name: str = "data") -> Batch:
    """One batch, on ``device`` if one is given; raises :class:`InputError` for what is none."""
    if isinstance(batch, Batch):
        labels, groups = (None if t is None else t.to(device) for t in batch[1:])
        return Batch(map_inputs(batch.inputs, lambda t: t.to(device)), labels, groups)
    if isinstance(batch, list | tuple) and len(batch) == 1:
        batch = batch[0]  # what a TensorDataset without labels gives
    if isinstance(batch, Tensor) or _is_inputs(batch):
        return Batch(map_inputs(batch, lambda t: t.to(device)), None)
    if isinstance(batch, list | tuple) and len(batch) >= 2 and (isinstance(batch[0], Tensor) or _is_inputs(batch[0])):
        return Batch(map_inputs(batch[0], lambda t: t.to(device)), torch.as_tensor(batch[1]).to(device))
    kind = type(batch).__name__
    holds = f" of {', '.join(type(one).__name__ for one in batch[:3])}" if isinstance(batch, list | tuple) else ""
    raise InputError(f"{name}: expected batches of inputs or (inputs, labels), got {kind}{holds}")


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
    """This rank's whole batches of a source that every rank has: all ranks take one in turn.

    A data set is not read beyond this rank's part; of a ``DataLoader`` or list every rank reads all batches.

    Raises:
        InputError: for an iterable whose length or order the ranks cannot know.
    """
    if ranks.size == 1:
        return source
    if count_batches(source, batch_size) is None:
        raise InputError(f"{name}: several processes share it, so it needs a length: pass a Dataset, or a list of batches")
    if isinstance(source, Dataset):
        every = torch.arange(len(source)).split(batch_size)  # type: ignore[arg-type]
        mine = every[ranks.rank :: ranks.size]
        if not mine:
            return ()
        rows = torch.cat(mine)
        return source.subset(rows) if hasattr(source, "subset") else Subset(source, rows.tolist())
    check_common_order(source, name)
    return islice(_split(source, batch_size), ranks.rank, None, ranks.size)


def share_bad(source: Any, ranks: Ranks) -> None:
    """Lets every rank know which samples of a lazy set the others could not read."""
    if isinstance(source, LazySet) and ranks.size > 1:
        for found in ranks.gather(source.unreadable):
            source.unreadable |= found


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


def plan_epoch(
    data: Dataset[Any], batch_size: int, seed: int, balanced: bool = False, ranks: Ranks = ALONE
) -> list[list[int]]:
    """The batches of an epoch, which depend on ``seed`` only; an incomplete last one is left out of a longer epoch.

    Of several ranks, each gets its rows of every batch.
    """
    count = len(data)  # type: ignore[arg-type]
    if count < ranks.size:
        least = "at least one sample" if ranks.size == 1 else f"a sample for each of {ranks.size} processes"
        raise InputError(f"train: the data set {f'has {count} samples' if count else 'is empty'}: it needs {least}")
    order = draw_order(data, seed, balanced)
    plan = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(plan) > 1 and len(plan[-1]) < batch_size:
        plan.pop()
    return [batch[ranks.rows] for batch in plan]


def make_epoch_loader(
    data: Dataset[Any],
    batch_size: int,
    seed: int,
    workers: int | None = None,
    balanced: bool = False,
    ranks: Ranks = ALONE,
) -> Loader:
    """One epoch in an order that depends on ``seed`` only, see :func:`plan_epoch`."""
    plan = plan_epoch(data, batch_size, seed, balanced, ranks)
    if isinstance(data, LazySet):
        return LazyLoader(data, plan, workers, least=2)  # batch normalisation may need two
    generator = torch.Generator().manual_seed(ranks.vary_seed(seed))
    return DataLoader(data, batch_sampler=plan, num_workers=workers or 0, generator=generator)
