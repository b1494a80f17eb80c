"""Sets of any size: nothing is decoded before it is asked for."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.checks import check_bad, check_class_labels, check_groups, refuse_bad
from exitlens.data.images import ImageSet
from exitlens.data.loading.cache import PixelCache
from exitlens.data.loading.readers import EncodedImages, Reader
from exitlens.data.loading.workers import Decoded, choose_workers, decode_batches
from exitlens.errors import DataWarning, InputError, require
from exitlens.modalities import IMAGE, Modality
from exitlens.types import Preprocess

LOADED_AT_ONCE, LOADED_BYTES = 64, 1 << 26  # at most so many samples, and bytes of them, in a batch


class LazySet(Dataset[tuple[Tensor, Tensor]]):
    """Samples decoded when they are asked for; item ``i`` is ``(normalised sample, label)``.

    Whatever takes it in batches decodes in processes of its own, see :func:`~exitlens.data.batches.iterate_batches`. A bad
    sample ends the iteration with a :class:`DataError` that names it; with ``skip_bad`` it is missing from its batch, and
    recorded.

    Args:
        reader: gives M samples, as they are before they are normalised.
        labels: ``(M,)`` ``int64``; of several labels ``(M,C)`` of 0 and 1.
        classes: class names, in label order.
        preprocess: how samples become network input.
        groups: optional ``(M,)`` ``int64``: samples with the same number belong together.
        skip_bad: leave out samples that cannot be read.
        workers: processes that decode where the caller does not say how many; ``None``: one for each core, at most 8.

    Raises:
        InputError: where counts, shapes or values do not fit.
    """

    dtype: ClassVar[torch.dtype]  # of what the reader gives
    masks: Tensor | None = None
    preprocess: Any

    def __init__(
        self,
        reader: Reader,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: Any,
        groups: Tensor | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        self.preprocess = preprocess
        self.labels = check_class_labels(labels, len(reader), classes, self.modality.name)
        self.reader, self.classes = reader, tuple(classes)
        self.groups = check_groups(groups, len(reader))
        self.skip_bad, self.workers = skip_bad, workers
        self.rows = torch.arange(len(reader))  # of the reader
        self.unreadable: dict[int, str] = {}  # by row of the reader, shared by all subsets
        self._told: set[str] = set()  # troubles, likewise

    @property
    @abstractmethod
    def modality(self) -> Modality:
        """What kind of samples it has."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of every sample as the reader gives it, its channels first."""

    @abstractmethod
    def load(self) -> Any:
        """All samples in memory: of small subsets. Samples that are skipped as bad are missing from it."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bad(self) -> tuple[str, ...]:
        """Samples that could not be read so far, each once and with the reason; subsets of one set share them."""
        return tuple(self.unreadable.values())

    def name(self, index: int) -> str:
        """The file, or file and row, of sample ``index``."""
        return self.reader.name(int(self.rows[index]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        found = next(self.decode([[int(self.rows[index])]]))
        self.check(found, skip=False)
        return self.preprocess.normalise(found.values[0]), self.labels[index]

    def decode(self, plan: Sequence[Sequence[int]], workers: int = 0) -> Iterator[Decoded]:
        """Batches of these rows of the reader, not yet normalised; the caller has each of them checked (:meth:`check`)."""
        return decode_batches(self.reader, plan, self.shape, workers, dtype=self.dtype)

    @property
    def samples_at_once(self) -> int:
        """How many to decode in a batch that a network does not need: few, where they are large."""
        return max(1, min(LOADED_AT_ONCE, LOADED_BYTES // max(1, prod(self.shape) * self.dtype.itemsize)))

    def read_raw(self) -> tuple[Tensor, list[int]]:
        """All samples ``(n,*shape)`` as the reader gives them, and their places in the set, but for those skipped as bad."""
        values, kept, bad = torch.empty(len(self), *self.shape, dtype=self.dtype), list[int](), list[str]()
        at_once = self.samples_at_once
        plan = [part.tolist() for part in self.rows.split(at_once)]
        workers = choose_workers(self.workers, len(plan))
        for number, found in enumerate(self.decode(plan, workers)):
            self.check(found)
            values[len(kept) : len(kept) + len(found.good)] = found.values
            kept += [number * at_once + place for place in found.good]
            bad += [reason for _, reason in found.bad]
        check_bad(bad, len(self), skip_bad=True)
        return values[: len(kept)], kept

    @property
    def inputs(self) -> Tensor:
        """All samples as network input, read anew at each call: take a small :meth:`subset` first."""
        return self.load().inputs  # type: ignore[no-any-return]

    def first(self, count: int) -> Self:
        """The first ``count`` samples (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (``(n,)`` integers) as a set of its own; nothing is read."""
        part = copy.copy(self)
        part.rows, part.labels = self.rows[indices], self.labels[indices]
        part.groups = None if self.groups is None else self.groups[indices]
        return part

    def check(self, found: Decoded, skip: bool = True) -> None:
        """Records the bad samples of a batch, or raises a :class:`DataError` for the first where none may be skipped."""
        if found.trouble and found.trouble not in self._told:
            self._told.add(found.trouble)
            warnings.warn(found.trouble, DataWarning, stacklevel=2)
        self.unreadable |= dict(found.bad)
        if found.bad and not (skip and self.skip_bad):
            raise refuse_bad(found.bad[0][1], "repair it")


class LazyImages(LazySet):
    """Images decoded when they are asked for; item ``i`` is ``(normalised float image (C,H,W), label)``.

    Arguments and errors are those of :class:`LazySet`; ``reader`` gives pixels ``(C,H,W)`` ``uint8``, and ``preprocess`` is
    a :class:`~exitlens.types.Preprocess`.

    Examples:
        >>> lazy, _ = xl.load_folder("photos", scenes.preprocess)  # a LazyImages: the files are listed, nothing is decoded
        >>> lazy.first(2).load().images.shape  # an ImageSet of the first two
        torch.Size([2, 3, 40, 40])
    """

    dtype = torch.uint8
    modality: ClassVar[Modality] = IMAGE
    preprocess: Preprocess

    def __init__(
        self,
        reader: Reader,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        groups: Tensor | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        require(preprocess, Preprocess, "preprocess")
        super().__init__(reader, labels, classes, preprocess, groups, skip_bad, workers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C,H,W)`` of every image."""
        return (len(self.preprocess.mean), *self.preprocess.size)

    def load(self) -> ImageSet:
        """All images in memory: of small subsets. Images that are skipped as bad are missing from it."""
        pixels, kept = self.read_raw()
        groups = None if self.groups is None else self.groups[kept]
        return ImageSet(pixels, self.labels[kept], self.classes, None, self.preprocess, groups)

    def cached(self, directory: Path | str) -> Self:
        """The same set, whose decoded and resized pixels are kept in a directory (see :class:`PixelCache`) and read there.

        A full disk is told by one :class:`DataWarning`; images are decoded then, as without it.

        Raises:
            InputError: where the reader has no encoded images; OutputError: for a directory that cannot be made.
        """
        if not isinstance(self.reader, EncodedImages):
            raise InputError(f"cache: it is for encoded images, {type(self.reader).__name__} gives pixels: leave it out")
        part = copy.copy(self)
        part.reader = copy.copy(self.reader)
        part.reader.cache = PixelCache(directory)
        return part


Images = ImageSet | LazyImages
T = TypeVar("T")


def set_reading(data: T, workers: int | None, cache: Path | None) -> T:
    """The same set, read by that many processes, its pixels kept in the directory ``cache``; ``None``: as it is.

    Raises:
        InputError: for a cache of a set in memory, and what :meth:`LazyImages.cached` and :func:`choose_workers` refuse.
    """
    if cache is not None and not isinstance(data, LazyImages):
        raise InputError(
            "cache: it is for images that are decoded from files, these data are in memory, or no images: leave it out"
        )
    if not isinstance(data, LazySet):
        return data
    choose_workers(workers, 2)
    part = data.cached(cache) if isinstance(data, LazyImages) and cache is not None else data.first(len(data))
    part.workers = workers
    return part
