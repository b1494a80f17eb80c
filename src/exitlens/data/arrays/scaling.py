"""Mean and standard deviation of every channel, measured on the training split."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exitlens.data.arrays.sets import Arrays, LazyArrays
from exitlens.data.checks import check_bad
from exitlens.data.loading.workers import choose_workers
from exitlens.errors import DataError
from exitlens.types import ArrayPreprocess
from exitlens.types.inputs import draw_samples

MOST_SAMPLES = 1000  # that are read of files


def measure_scaling(train: Arrays, seed: int = 0) -> ArrayPreprocess:
    """The preprocessing of a set with the mean and standard deviation that its channels have in it.

    Of files, at most :data:`MOST_SAMPLES` are read, drawn at random. A channel that never changes gets 1 as its standard
    deviation.

    Args:
        train: the training split.
        seed: of that draw.

    Raises:
        DataError: an empty set, or files that cannot be read.
    """
    if not len(train):
        raise DataError("data: the training split is empty: mean and std cannot be measured")
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None  # values are moved by it first, or the squares of large ones would cancel
    for values in _iterate_values(train, seed):
        flat = values.movedim(1, 0).flatten(1).double()  # (C,n)
        shift = flat.mean(1, keepdim=True) if shift is None else shift
        flat = flat - shift
        count, total, squares = count + flat.shape[1], total + flat.sum(1), squares + flat.square().sum(1)
    assert shift is not None
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    middle = mean + shift[:, 0]
    is_constant = std <= 1e-7 * middle.abs().clamp(min=1e-30)
    return train.preprocess.scaled(middle.tolist(), torch.where(is_constant, 1.0, std).tolist())


def _iterate_values(train: Arrays, seed: int) -> Iterator[Tensor]:  # (n,C,*S)
    if not isinstance(train, LazyArrays):
        yield from train.values.split(1024)
        return
    part = train.subset(draw_samples(len(train), MOST_SAMPLES, seed).sort().values)
    plan = [rows.tolist() for rows in part.rows.split(part.samples_at_once)]
    some = False
    for found in part.decode(plan, choose_workers(part.workers, len(plan))):
        part.check(found)
        if found.good:
            some = True
            yield found.values
    if not some:
        check_bad(part.bad, len(part.bad), skip_bad=True)
