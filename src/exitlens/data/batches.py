"""Batches of inputs and labels from a data set, a loader or tensors, and the order of an epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from exitlens.data.readers import check_bad
from exitlens.data.sets import LazySet
from exitlens.data.workers import Plan, choose_workers
from exitlens.errors import InputError, first_line
from exitlens.functional.groups import draw_from_groups
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types.inputs import Inputs, count_rows, draw_samples, list_input_names, list_tensors, map_inputs, split_rows
from exitlens.types.traces import number_groups


class Batch(NamedTuple):
    """Inputs of B samples, and their labels ``(B,)`` and groups ``(B,)`` ``int64`` if there are any."""

    inputs: Inputs
    labels: Tensor | None
    groups: Tensor | None = None


class Loader(Protocol):
    """Batches that can be counted before they are read."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def iterate_batches(
    source: Any, batch_size: int = 64, device: torch.device | None = None, workers: int | None = None, name: str = "data"
) -> Iterator[Batch]:
    """Yield batches in order, on ``device`` if one is given; errors call the source ``name``.

    ``source`` is a ``Dataset`` (its ``groups`` come along), an iterable of batches such as a ``DataLoader``, or inputs in
    memory. ``workers`` processes decode a lazy set (default: one for each core) or read a ``Dataset`` (default: none).
    """
    for batch in _split(source, batch_size, workers, name):
        yield as_batch(batch, device, name)


def iterate_inputs(source: Any, batch_size: int = 64, device: torch.device | None = None) -> Iterator[Inputs]:
    """Yield the inputs alone, without labels, file names or other things that come with them."""
    for batch in _split(source, batch_size):
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        yield as_batch(inputs, device)[0]


@dataclass(frozen=True)
class HeldSamples:
    """Samples that are gone through several times.

    Attributes:
        prepare: returns the inputs of the samples in these rows. count: number of samples.
        labels: ``(N,)``, or ``(N,C)`` of several labels. masks: ``(N,*S)`` ``bool``. groups: ``(N,)`` integers. ``None`` if
            the data have none.
        rows: ``(N,)``, where the samples stand in the data.
    """

    prepare: Callable[[Tensor], Inputs]
    count: int
    labels: Tensor | None
    masks: Tensor | None
    groups: Tensor | None
    rows: Tensor

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> HeldSamples:
        """Return the same samples with masks on ``device``, and inputs that come there as they are prepared."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, prepare=lambda rows: map_inputs(self.prepare(rows), lambda t: t.to(device)), masks=masks)


def hold_samples(data: Any, limit: int, seed: int = 0, *, equal_groups: bool = False) -> HeldSamples:
    """Hold at most ``limit`` samples, drawn by ``seed``: as stored for our own sets, else as floats, on the CPU.

    With ``equal_groups`` as many are drawn from each group, so that means over groups are those of the data. Of our own lazy
    sets, files that cannot be read are left out as the set says.
    """
    draw, drawn = partial(_draw, limit=limit, seed=seed, equal_groups=equal_groups), None
    if hasattr(data, "subset") and hasattr(data, "inputs"):
        drawn = draw(len(data), data.groups if equal_groups else None)
        part = data.subset(drawn)
        if isinstance(part, LazySet):
            part = part.load()
        return HeldSamples(lambda rows: part.subset(rows).inputs, len(part), part.labels, part.masks, part.groups, drawn)
    batches, known, named = list[Inputs](), list[Tensor](), list[Tensor]()
    if isinstance(data, Dataset) and hasattr(data, "__len__"):  # no more is read than is held
        drawn = draw(len(data), read_groups(data) if equal_groups else None)
        data = Subset(data, drawn.tolist())
    is_stream = hasattr(data, "take_drawn")  # of files
    if is_stream:
        data = data.take_drawn(draw)
    for batch in _split(data, 64):
        parts = batch if isinstance(batch, list | tuple) and batch else (batch,)
        batches.append(as_batch(parts[0])[0])
        known += [part for part in parts[1:2] if isinstance(part, Tensor)]
        named += [batch.groups] if isinstance(batch, Batch) and batch.groups is not None else []
    if not batches:
        raise InputError("data: it gave no batch. Fix: pass at least one sample.")
    inputs = _join(batches)
    labels, groups = (torch.cat(parts) if len(parts) == len(batches) else None for parts in (known, named))
    held = torch.arange(count_rows(inputs))
    if is_stream:
        drawn = data.find_places()
    if drawn is None:
        held = drawn = draw(len(held), groups)
        labels, groups = (None if column is None else column[held] for column in (labels, groups))
    return HeldSamples(lambda rows: map_inputs(inputs, itemgetter(held[rows])), len(held), labels, None, groups, drawn)


def _join(batches: list[Inputs]) -> Inputs:
    columns = list(zip(*map(list_tensors, batches), strict=True))
    shapes = sorted({tuple(tensor.shape[1:]) for tensor in columns[0]})
    if any(len({tensor.shape[1:] for tensor in column}) > 1 for column in columns):
        raise InputError(f"data: expected inputs of one shape, got {shapes[0]} and {shapes[-1]}. Fix: resize or pad them.")
    joined, names = [torch.cat(column) for column in columns], list_input_names(batches[0])
    if len(counts := {len(column) for column in joined}) > 1:
        raise InputError(f"data: expected as many rows of every input, got {sorted(counts)}. Fix: leave the rest out.")
    return dict(zip(names, joined, strict=True)) if names else joined[0]


def read_groups(source: Any) -> Tensor | None:  # -> (N,) integers
    """Return the groups of a data set, also behind a ``Subset`` or a loader in order; ``None`` if it names none."""
    if isinstance(source, DataLoader):
        return read_groups(source.dataset) if isinstance(source.sampler, SequentialSampler) else None
    if isinstance(source, Subset):
        groups = read_groups(source.dataset)
        return None if groups is None else groups[torch.as_tensor(source.indices)]
    groups = getattr(source, "groups", None)
    if groups is not None:
        groups = number_groups(groups)
        if groups.shape != (len(source),) or groups.is_floating_point():
            got = f"{tuple(groups.shape)} {groups.dtype}"
            raise InputError(f"groups: expected ({len(source)},) integers or names, got {got}. Fix: name one a sample.")
    return groups


def _draw(count: int, groups: Tensor | None, *, limit: int, seed: int, equal_groups: bool) -> Tensor:
    if groups is not None and equal_groups:
        return draw_from_groups(groups, limit, seed).sort().values
    return draw_samples(count, limit, seed).sort().values


def _split(source: Any, batch_size: int, workers: int | None = None, name: str = "data") -> Iterable[Any]:
    if isinstance(source, Tensor) or _is_inputs(source):
        return split_rows(source, batch_size)
    if isinstance(source, LazySet):
        return LazyLoader(source, plan_in_order(len(source), batch_size), workers)
    if isinstance(source, Dataset):  # a generator of its own leaves the global one alone
        source = DataLoader(
            source, batch_size, num_workers=workers or 0, collate_fn=collate_samples, generator=torch.Generator()
        )
    if isinstance(source, DataLoader) and source.batch_size and (groups := read_groups(source)) is not None:
        pairs = zip(source, groups.split(source.batch_size), strict=not source.drop_last)
        return (as_batch(batch)._replace(groups=ids) for batch, ids in pairs)
    if not isinstance(source, Iterable):
        raise InputError(f"{name}: expected a Dataset, a DataLoader or an iterable of batches, got {type(source).__name__}")
    return source


def collate_samples(samples: list[Any]) -> Any:
    """Return the batch that PyTorch makes of samples; raise :class:`InputError` if they differ in shape, or have none."""
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError, KeyError) as error:
        if isinstance(error, RuntimeError) and not re.search("equal size|not resizable", str(error)):  # memory, perhaps
            raise
        fix = "return tensors, numbers or dicts of them with the same names"
        if isinstance(error, RuntimeError):
            fix = "resize or pad them to one shape, or pass a DataLoader with a collate_fn"
        raise InputError(f"data: samples do not make a batch: {first_line(error)}. Fix: {fix}.") from error


def plan_in_order(count: int, batch_size: int) -> Plan:
    """Plan batches of all samples, one after the other."""
    return [range(at, min(at + batch_size, count)) for at in range(0, count, batch_size)]


class LazyLoader:
    """The batches of a lazy set, decoded in worker processes, the same whatever their number (default: the set's).

    ``plan`` has the indices of the samples of every batch; one with fewer than ``least`` readable samples is left out.
    """

    def __init__(self, data: LazySet, plan: Plan, workers: int | None = None, least: int = 1) -> None:
        self.data, self.plan, self.least = data, plan, least
        self.workers = choose_workers(data.workers if workers is None else workers, len(plan))

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        data, bad, is_empty = self.data, list[str](), True
        indices = [torch.as_tensor(part) for part in self.plan]
        rows = [data.rows[part].tolist() for part in indices]
        for part, decoded in zip(indices, data.decode(rows, self.workers), strict=True):
            data.check(decoded)
            bad += [reason for _, reason in decoded.bad]
            if len(decoded.good) < min(self.least, len(part)) or not decoded.good:
                continue
            is_empty, kept = False, part[decoded.good]
            groups = None if data.groups is None else data.groups[kept]
            values, labels = data.pair(decoded.values, kept)
            yield Batch(data.preprocess.normalise(values), labels, groups)
        if is_empty:
            check_bad(bad, len(bad), skip_bad=True)


def as_batch(batch: Any, device: torch.device | None = None, name: str = "data") -> Batch:
    """Return a batch, on ``device`` if one is given; raise :class:`InputError` for anything else."""
    parts = batch if isinstance(batch, list | tuple) and batch else (batch,)  # a TensorDataset without labels gives [x]
    if isinstance(parts[0], Tensor) or _is_inputs(parts[0]):
        inputs = map_inputs(parts[0], lambda t: t.to(device))
        labels = None if len(parts) < 2 or parts[1] is None else _read_labels(parts[1], name).to(device)
        groups = batch.groups if isinstance(batch, Batch) else None
        return Batch(inputs, labels, None if groups is None else groups.to(device))
    kind = type(batch).__name__
    holds = f" of {', '.join(type(item).__name__ for item in batch[:3])}" if isinstance(batch, list | tuple) else ""
    raise InputError(f"{name}: expected batches of inputs or (inputs, labels), got {kind}{holds}")


def _read_labels(labels: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: expected labels as numbers or one tensor, got {type(labels).__name__} ({first_line(error)}). Fix: "
            "return torch.tensor(label) for each sample."
        ) from error


def _is_inputs(value: Any) -> bool:
    """Return whether it is a dict of tensors: inputs by name."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def count_batches(source: Any, batch_size: int = 64) -> int | None:
    """Return how many batches :func:`iterate_batches` will yield, if that is known."""
    try:
        length = len(source)
    except TypeError:
        return None
    if _is_inputs(source):
        length = count_rows(source)
    return -(-length // batch_size) if isinstance(source, Tensor | Dataset | Mapping) else length


def take_share(source: Any, batch_size: int, ranks: DistributedContext, name: str = "data") -> Any:
    """Return this rank's whole batches of a source that every rank has: all ranks take one in turn.

    A data set is not read beyond this rank's part; all batches of a ``DataLoader`` or list are read by every rank.
    """
    if ranks.size == 1:
        return source
    if count_batches(source, batch_size) is None:
        fix = "pass a Dataset, or a list of batches"
        raise InputError(f"{name}: several processes share it, so it needs a length. Fix: {fix}")
    if isinstance(source, Dataset):
        batches = torch.arange(len(source)).split(batch_size)[ranks.rank :: ranks.size]  # type: ignore[arg-type]
        if not batches:
            return ()
        rows = torch.cat(batches)
        return source.subset(rows) if hasattr(source, "subset") else Subset(source, rows.tolist())
    check_common_order(source, name)
    return islice(_split(source, batch_size), ranks.rank, None, ranks.size)


def share_bad(source: Any, ranks: DistributedContext) -> None:
    """Tell every rank which samples of a lazy set the others could not read."""
    if isinstance(source, LazySet) and ranks.size > 1:
        for unreadable in ranks.gather(source.unreadable):
            source.unreadable |= unreadable


def check_common_order(source: Any, name: str) -> None:
    """Raise :class:`InputError` for a loader that gives every rank other batches, or the same ones in another order."""
    sampler = getattr(source, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        problem = "its sampler is a DistributedSampler, the processes share it already"
        raise InputError(f"{name}: {problem}. Fix: pass the data set")
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        fix = "pass the data set, or a loader with generator=torch.Generator()"
        raise InputError(f"{name}: it shuffles by the global random state, which differs between processes. Fix: {fix}")


def read_labels(data: Any, purpose: str) -> Tensor:
    """Return the labels ``(N,)`` of a data set without reading samples; ``purpose`` is the argument that needs them."""
    values = getattr(data, "labels", getattr(data, "targets", None))
    if values is None and isinstance(data, TensorDataset) and len(data.tensors) > 1:
        values = data.tensors[1]
    try:
        labels = None if values is None else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        labels = None
    if labels is not None and labels.ndim == 2:
        raise InputError(f"{purpose}: it is for one class a sample, these data have several labels. Fix: leave it out")
    if labels is None or labels.shape != (len(data),) or labels.is_floating_point():
        fix = "give a data set with .labels, (N,) integers, not a loader"
        raise InputError(f"{purpose}: needs the training labels. Fix: {fix}")
    return labels


def read_targets(data: Any) -> Tensor:
    """Return the labels of a data set or loader that are numbers, ``(N,)`` or ``(N,C)``, if need be by reading it once."""
    source = data.dataset if isinstance(data, DataLoader) else data
    values = getattr(source, "labels", getattr(source, "targets", None))
    if values is None and isinstance(source, TensorDataset) and len(source.tensors) > 1:
        values = source.tensors[1]
    if values is None:
        with torch.random.fork_rng(devices=[]):
            parts = [batch.labels for batch in iterate_batches(data, name="train") if batch.labels is not None]
        values = torch.cat(parts) if parts else None
    if values is None:
        raise InputError("train: expected batches of inputs and numbers, got inputs only")
    return torch.as_tensor(values)


def weigh_classes(labels: Tensor, classes: int) -> tuple[float, ...]:  # (N,) integers
    """Return ``N / (C * samples of the class)``: every class counts alike, and the mean over samples is 1."""
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"class_weights: expected training labels in [0, {classes}), got {low} to {high}")
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        fix = "give numbers, or leave them out"
        raise InputError(f"class_weights: classes {missing[:5]} have no training sample. Fix: {fix}")
    return tuple((len(labels) / (classes * counts.double())).tolist())


def draw_order(data: Any, seed: int, balanced: bool = False) -> list[int]:
    """Return the indices of one epoch in an order that depends on the seed only.

    A balanced epoch is as long: it leaves out samples of large classes, and repeats those of small ones evenly.
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


def plan_epoch(
    data: Dataset[Any], batch_size: int, seed: int, balanced: bool = False, ranks: DistributedContext = ALONE
) -> list[list[int]]:
    """Plan the batches of an epoch, each rank's rows of them; an incomplete last batch is left out of a longer epoch."""
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
    ranks: DistributedContext = ALONE,
) -> Loader:
    """Load one epoch in an order that depends on ``seed`` only, see :func:`plan_epoch`."""
    plan = plan_epoch(data, batch_size, seed, balanced, ranks)
    if isinstance(data, LazySet):
        return LazyLoader(data, plan, workers, least=2)  # batch normalisation may need two
    generator = torch.Generator().manual_seed(ranks.vary_seed(seed))
    return DataLoader(data, batch_sampler=plan, num_workers=workers or 0, collate_fn=collate_samples, generator=generator)
