"""Sets of series, volumes and vectors: in memory, and read from files when they are asked for."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.checks import check_class_labels, check_groups
from exitlens.data.lazy import LazySet
from exitlens.data.loading.readers import Reader
from exitlens.errors import InputError, require
from exitlens.modalities import SERIES, VECTOR, VOLUME, Modality
from exitlens.types import ArrayPreprocess

KINDS: tuple[Modality, ...] = (SERIES, VOLUME, VECTOR)


def find_kind(preprocess: ArrayPreprocess) -> Modality:
    """The modality whose samples it makes inputs of; raises :class:`InputError` for another object."""
    require(preprocess, ArrayPreprocess, "preprocess")
    return next(kind for kind in KINDS if isinstance(preprocess, kind.preprocess))


class ArraySet(Dataset[tuple[Tensor, Tensor]]):
    """Series, volumes or vectors in memory; item ``i`` is ``(normalised float32 sample, label)``.

    Args:
        values: ``(N,C,T)``, ``(N,C,D,H,W)`` or ``(N,F)`` ``float32``, as they are before they are normalised.
        labels: ``(N,)`` ``int64``.
        classes: class names, in label order.
        preprocess: how samples become network input; its class says which of the three they are.
        masks: optional ``(N,T)`` or ``(N,D,H,W)`` ``bool``: which locations carry the answer.
        groups: optional ``(N,)`` ``int64``: samples with the same number belong together.

    Raises:
        InputError: where counts, shapes or values do not fit; NaN and infinite values do not.

    Examples:
        >>> scaling = xl.VectorPreprocess(mean=(0.0, 10.0), std=(1.0, 5.0))
        >>> data = xl.ArraySet(torch.tensor([[1.0, 20.0], [0.0, 10.0]]), torch.tensor([0, 1]), ("no", "yes"), scaling)
        >>> data.inputs
        tensor([[1., 2.],
                [0., 0.]])
    """

    def __init__(
        self,
        values: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: ArrayPreprocess,
        masks: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        require(values, Tensor, "values")
        self.modality = find_kind(preprocess)
        _check_values(values, preprocess, self.modality)
        if masks is not None and (masks.shape != (len(values), *values.shape[2:]) or masks.dtype != torch.bool):
            expected = (len(values), *values.shape[2:])
            raise InputError(f"masks: expected {expected} bool, got {tuple(masks.shape)} {masks.dtype}")
        self.values, self.preprocess, self.masks, self.classes = values, preprocess, masks, tuple(classes)
        self.labels = check_class_labels(labels, len(values), classes, self.modality.name)
        self.groups = check_groups(groups, len(values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def inputs(self) -> Tensor:
        """All samples as network input, normalised anew at each call."""
        return self.preprocess.normalise(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.preprocess.normalise(self.values[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        inputs = self.preprocess.normalise(self.values[indices])
        return list(zip(inputs, self.labels[indices], strict=True))

    def first(self, count: int) -> Self:
        """The first ``count`` samples (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (``(n,)`` integers) as a set of its own."""
        part = copy.copy(self)
        part.values, part.labels = self.values[indices], self.labels[indices]
        part.masks = None if self.masks is None else self.masks[indices]
        part.groups = None if self.groups is None else self.groups[indices]
        return part

    def scaled(self, preprocess: ArrayPreprocess) -> Self:
        """The same samples with another mean and standard deviation."""
        _check_values(self.values[:1], preprocess, self.modality)
        part = copy.copy(self)
        part.preprocess = preprocess
        return part


class LazyArrays(LazySet):
    """Series, volumes or vectors decoded when they are asked for; item ``i`` is ``(normalised float32 sample, label)``.

    Args:
        reader: gives M samples ``float32``, all of one shape.
        labels: as of :class:`~exitlens.data.lazy.LazySet`, like ``classes``, ``groups``, ``skip_bad`` and ``workers``.
        preprocess: as of :class:`ArraySet`.
        shape: of every sample: ``(C,T)``, ``(C,D,H,W)`` or ``(F,)``.

    Examples:
        >>> data = xl.load_arrays("recordings", xl.SeriesPreprocess(mean=(0.0, 0.0), std=(1.0, 1.0)))
        >>> data.first(2).inputs.shape  # read now
        torch.Size([2, 2, 64])
    """

    dtype = torch.float32
    preprocess: ArrayPreprocess

    def __init__(
        self,
        reader: Reader,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: ArrayPreprocess,
        shape: tuple[int, ...],
        groups: Tensor | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        self._kind, self._shape = find_kind(preprocess), tuple(shape)
        _check_shape(self._shape, preprocess, self._kind, "shape")
        super().__init__(reader, labels, classes, preprocess, groups, skip_bad, workers)

    @property
    def modality(self) -> Modality:
        """As the class of ``preprocess`` says."""
        return self._kind

    @property
    def shape(self) -> tuple[int, ...]:
        """As given."""
        return self._shape

    def load(self) -> ArraySet:
        """All samples in memory: of small subsets. Samples that are skipped as bad are missing from it."""
        values, kept = self.read_raw()
        groups = None if self.groups is None else self.groups[kept]
        return ArraySet(values, self.labels[kept], self.classes, self.preprocess, None, groups)

    def scaled(self, preprocess: ArrayPreprocess) -> Self:
        """The same samples with another mean and standard deviation."""
        _check_shape(self._shape, preprocess, self._kind, "shape")
        part = copy.copy(self)
        part.preprocess = preprocess
        return part


Arrays = ArraySet | LazyArrays


def _check_values(values: Tensor, preprocess: ArrayPreprocess, kind: Modality) -> None:
    if values.dtype != torch.float32:
        raise InputError(f"values: expected float32, got {values.dtype}: convert with values.float()")
    _check_shape(tuple(values.shape[1:]), preprocess, kind, "values", "N,")
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values).flatten(1).all(1)).nonzero()[0])
        raise InputError(f"values: {kind.name} {row} has NaN (gaps) or infinite values: fill them first, or leave it out")


def _check_shape(shape: tuple[int, ...], preprocess: ArrayPreprocess, kind: Modality, name: str, start: str = "") -> None:
    if len(shape) != len(kind.axes) or shape[0] != len(preprocess.mean):
        expected = ",".join((str(len(preprocess.mean)), *kind.axes[1:]))
        raise InputError(f"{name}: expected ({start}{expected}) of {kind.plural}, got ({start}{','.join(map(str, shape))})")
