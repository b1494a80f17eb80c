"""Features of a data set, kept from epoch to epoch: in memory, or in files that are mapped into it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from exitlens.data.batches import Batch, Plan

IN_MEMORY = 2 * 2**30  # bytes of features in memory


@dataclass
class Room:
    """Where features are kept: in memory up to a limit, then in files without a name, which no kill leaves behind."""

    folder: Path | None
    left: int = IN_MEMORY

    def allocate(self, rows: int, like: Tensor) -> Tensor:
        """An empty ``(rows,...)`` tensor whose samples lie in memory as those of ``like`` do."""
        order = [0, *sorted(range(1, like.ndim), key=like.stride, reverse=True)]
        shape = (rows, *(like.shape[axis] for axis in order[1:]))
        size = math.prod(shape) * like.element_size()
        if size <= self.left or size == 0:
            self.left -= size
            flat = torch.empty(shape, dtype=like.dtype)
        else:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash later
                flat = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=like.dtype).view(shape)
        return flat.permute([order.index(axis) for axis in range(like.ndim)])


@dataclass
class FeatureCache:
    """The features of a data set, a row for every sample that could be read.

    Attributes:
        columns: by name ``(M,...)``, in the precision in which the backbone gave them: nothing is rounded.
        labels: ``(M,)``.
        places: ``(N,)`` the row of every sample of the data set, -1 where there is none.
    """

    columns: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def open(self, plan: Plan) -> FeatureLoader:
        """The batches of a plan (indices of samples)."""
        return FeatureLoader(self, plan)


@dataclass
class FeatureLoader:
    """Batches of features, in the order of a plan; samples without a row are missing from theirs."""

    cache: FeatureCache
    plan: Plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.plan:
            rows = self.cache.places[torch.as_tensor(part)]
            rows = rows[rows >= 0]
            if len(rows) >= min(2, len(part)):  # as lazy sets do it
                inputs = {name: column[rows] for name, column in self.cache.columns.items()}
                yield Batch(inputs, self.cache.labels[rows])
