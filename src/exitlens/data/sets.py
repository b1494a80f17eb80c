"""Labelled images, series, volumes and vectors as data sets: in memory, and read lazily from anywhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.readers import EncodedImages, FileCheck, ImageFiles, PixelCache, Reader, check_bad, find_shape, refuse_bad
from exitlens.data.workers import Decoded, choose_workers, decode_batches
from exitlens.errors import DataError, DataWarning, InputError, require
from exitlens.modalities import IMAGE, MODALITIES, SERIES, VECTOR, VOLUME, Modality
from exitlens.types.inputs import Inputs, draw_samples
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess
from exitlens.types.tasks import Task, check_truth, task_of_labels

KINDS: tuple[Modality, ...] = (SERIES, VOLUME, VECTOR)
LOADED_AT_ONCE, LOADED_BYTES = 64, 1 << 26  # limits on the samples, and on their bytes, in one batch
MEASURED = 1000  # limit on the files that are read to measure mean and standard deviation
T = TypeVar("T")


def find_kind(preprocess: object, kinds: Sequence[Modality] = MODALITIES) -> Modality:
    """Return the modality whose samples ``preprocess`` turns into inputs; another object is an :class:`InputError`."""
    kind = next((kind for kind in kinds if isinstance(preprocess, kind.preprocess)), None)
    if kind is None:
        known = ", ".join(kind.preprocess.__name__ for kind in kinds)
        raise InputError(f"preprocess: expected one of {known}, got {type(preprocess).__name__}")
    return kind


class SampleSet(Dataset[Any]):
    """Labelled samples of one kind, in memory or on disk; item ``i`` is ``(inputs, label)`` without the batch axis."""

    by_sample: ClassVar[tuple[str, ...]] = ("labels", "groups", "masks")  # attributes with a row for each sample
    labels: Tensor  # (N,) integers; several (N,C) bool; of pixels (N,H,W) uint8; numbers (N,) or (N,C) floats; none (N,0)
    groups: Tensor | None  # (N,) integers: samples with the same number belong together
    masks: Tensor | None = None  # (N,*S) bool: which locations carry the answer
    classes: tuple[str, ...]  # names, in label order; of numbers, what each is
    preprocess: Any  # how raw samples become inputs
    shape: tuple[int, ...] = ()  # of a sample before it is normalised; texts have none

    def set_labels(
        self, shape: Sequence[int], labels: Tensor, classes: Sequence[str], groups: Tensor | None, masks: Tensor | None
    ) -> None:
        """Check and keep what is known of N samples; ``shape`` is that of their masks, ``(N,*S)``."""
        count = shape[0]
        require(labels, Tensor, "labels")
        are_numbers = labels.is_floating_point() and (labels.ndim == 2 or len(classes) < 2)
        if labels.ndim == 2 and len(classes) < 2 and not are_numbers:
            raise InputError(f"classes: expected the names of 2 labels or more, got {tuple(classes)}")
        check_truth(labels, count, len(classes), "regression" if are_numbers else None)
        if labels.ndim == 3 and labels.shape != tuple(shape):
            raise InputError(f"labels: expected {tuple(shape)}, of the size of the images, got {tuple(labels.shape)}")
        kinds = {} if are_numbers else {1: torch.int64, 2: torch.bool, 3: torch.uint8}
        self.labels, self.classes = labels.to(kinds.get(labels.ndim, torch.float32)), tuple(classes)
        if groups is not None:
            require(groups, Tensor, "groups")
            if groups.shape != (count,) or groups.is_floating_point():
                got = f"{tuple(groups.shape)} {groups.dtype}"
                raise InputError(f"groups: expected ({count},) integers, one per sample; got {got}")
        if masks is not None and (masks.shape != tuple(shape) or masks.dtype != torch.bool):
            raise InputError(f"masks: expected {tuple(shape)} bool, got {tuple(masks.shape)} {masks.dtype}")
        self.groups, self.masks = None if groups is None else groups.long(), masks

    @property
    def modality(self) -> Modality:
        """The kind of its samples."""
        return find_kind(self.preprocess)

    @property
    def task(self) -> Task:
        """The task of a network that learns from them; without labels, ``(N,0)``, it answers vectors."""
        if self.labels.is_floating_point():
            return "regression" if self.classes else "embedding"
        return task_of_labels(self.labels)

    @property
    def inputs(self) -> Inputs:
        """All samples as a network's inputs; take a small :meth:`subset` first if they are not in memory."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Self:
        """Return the first ``count`` samples (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """Return the samples at ``indices`` (``(n,)`` integers) as a set of its own; nothing is read or encoded again."""
        part = copy.copy(self)
        for name in self.by_sample:
            values = getattr(self, name)
            if values is not None:
                setattr(part, name, values[indices] if isinstance(values, Tensor) else values.subset(indices))
        return part

    def scaled(self, preprocess: ArrayPreprocess) -> Self:
        """Return the same series, volumes or vectors with another mean and standard deviation."""
        _check_shape(self.shape, preprocess, self.modality, "preprocess")
        part = copy.copy(self)
        part.preprocess = preprocess
        return part


class HeldSet(SampleSet):
    """A set in memory; ``preprocess`` normalises its ``values`` when they are asked for."""

    by_sample = (*SampleSet.by_sample, "values")
    values: Tensor

    @property
    def inputs(self) -> Tensor:
        """All samples as network input, normalised anew at each call; take a :meth:`subset` first if large."""
        return self.preprocess.normalise(self.values)  # type: ignore[no-any-return]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.preprocess.normalise(self.values[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.preprocess.normalise(self.values[indices]), self.labels[indices], strict=True))


class ImageSet(HeldSet):
    """Images in memory; item ``i`` is ``(normalised float image (C,H,W), label)``.

    Args:
        images: ``(N,C,H,W)`` ``uint8``.
        labels: ``(N,)`` ``int64``; several labels a sample ``(N,C)`` of 0 and 1; or the classes of pixels ``(N,H,W)``, 255
            where a pixel has none.
        classes: class names, in label order.
        masks: optional ``(N,H,W)`` ``bool``: where the object is.
        preprocess: how pixels become network input; by default scaled to [-2, 2].
        groups: optional ``(N,)`` ``int64``: images with the same number belong together.

    Examples:
        >>> pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> data = xl.data.ImageSet(pixels, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
        >>> data.inputs.shape, data[0][0].min().item()
        (torch.Size([4, 3, 32, 32]), -2.0)
    """

    preprocess: Preprocess

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        masks: Tensor | None = None,
        preprocess: Preprocess | None = None,
        groups: Tensor | None = None,
    ) -> None:
        require(images, Tensor, "images")
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InputError(f"images: expected (N,C,H,W) uint8, got {tuple(images.shape)} {images.dtype}")
        self.values, self.shape = images, tuple(images.shape[1:])
        channels, *size = self.shape
        if preprocess is not None and len(preprocess.mean) != channels:
            raise InputError(f"preprocess: it is for {len(preprocess.mean)} channels, the images have {channels}")
        self.preprocess = preprocess or Preprocess((size[0], size[1]), (0.5,) * channels, (0.25,) * channels)
        self.set_labels((len(images), *size), labels, classes, groups, masks)

    @property
    def images(self) -> Tensor:
        """Pixels ``(N,C,H,W)`` ``uint8``."""
        return self.values


class ArraySet(HeldSet):
    """Series, volumes or vectors in memory; item ``i`` is ``(normalised float32 sample, label)``.

    Args:
        values: ``(N,C,T)``, ``(N,C,D,H,W)`` or ``(N,F)`` ``float32``, before they are normalised; all finite.
        labels: ``(N,)`` ``int64``; several labels a sample ``(N,C)`` of 0 and 1.
        classes: class names, in label order.
        preprocess: how samples become network input; its class says which of the three kinds they are.
        masks: optional ``(N,T)`` or ``(N,D,H,W)`` ``bool``: which locations carry the answer.
        groups: optional ``(N,)`` ``int64``: samples with the same number belong together.

    Examples:
        >>> scaling = xl.data.VectorPreprocess(mean=(0.0, 10.0), std=(1.0, 5.0))
        >>> data = xl.data.ArraySet(torch.tensor([[1.0, 20.0], [0.0, 10.0]]), torch.tensor([0, 1]), ("no", "yes"), scaling)
        >>> data.inputs
        tensor([[1., 2.],
                [0., 0.]])
    """

    preprocess: ArrayPreprocess

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
        kind = find_kind(preprocess, KINDS)
        if values.dtype != torch.float32:
            raise InputError(f"values: expected float32, got {values.dtype}. Fix: convert with values.float()")
        _check_shape(values.shape[1:], preprocess, kind, "values")
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values).flatten(1).all(1)).nonzero()[0])
            raise InputError(f"values: {kind.name} {row} has NaN (gaps) or infinite values. Fix: fill them, or leave it out")
        self.values, self.preprocess, self.shape = values, preprocess, tuple(values.shape[1:])
        self.set_labels((len(values), *values.shape[2:]), labels, classes, groups, masks)


class LazySet(SampleSet):
    """Images, series, volumes or vectors that are decoded when asked for; item ``i`` is ``(normalised sample, label)``.

    Args:
        reader: gives M samples of one shape, before they are normalised: pixels ``(C,H,W)`` ``uint8``, or other values
            ``float32``.
        labels: ``(M,)`` ``int64``; several labels a sample ``(M,C)`` of 0 and 1.
        classes: class names, in label order.
        preprocess: how samples become network input; its class says what they are.
        groups: optional ``(M,)`` ``int64``: samples with the same number belong together.
        skip_bad: leave out samples that cannot be read, and list them in :attr:`bad`; otherwise the first of them ends an
            iteration in batches with a :class:`DataError`.
        workers: processes that decode, unless the caller says how many; ``None``: one for each core, at most 8.

    Examples:
        >>> lazy = xl.data.load_folder("photos", scenes.preprocess)  # a LazySet: the files are listed, nothing is decoded
        >>> lazy.first(2).load().images.shape  # an ImageSet of the first two
        torch.Size([2, 3, 40, 40])
    """

    by_sample = (*SampleSet.by_sample, "rows")

    def __init__(
        self,
        reader: Reader,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: Preprocess | ArrayPreprocess,
        groups: Tensor | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        self.dtype = torch.uint8 if find_kind(preprocess, (IMAGE, *KINDS)) is IMAGE else torch.float32
        self.preprocess, self.reader = preprocess, reader
        self.set_labels((len(reader), *find_shape(preprocess)[1:]), labels, classes, groups, None)
        self.shape = find_shape(preprocess)  # of the reader's samples; a series of open length is as long as the first
        if not self.shape:
            first = reader.read(0).shape if not hasattr(reader, "shape") and len(reader) else (len(preprocess.mean), 0)
            self.shape = tuple(getattr(reader, "shape", first))
            _check_shape(self.shape, preprocess, SERIES, "reader")
        self.skip_bad, self.workers = skip_bad, workers
        self.rows = torch.arange(len(reader))  # rows of the reader
        self.unreadable: dict[int, str] = {}  # reasons by row of the reader, shared by all subsets
        self._told: set[str] = set()  # warnings that were given, shared by all subsets

    def load(self) -> Any:
        """Read a small set into memory, as an :class:`ImageSet` or :class:`ArraySet`."""
        values, kept, bad, start = torch.empty(len(self), *self.shape, dtype=self.dtype), list[int](), list[str](), 0
        truth = [torch.empty(0, *self.labels.shape[1:], dtype=self.labels.dtype)]
        for batch in self.decode_all():
            places = [start + place for place in batch.good]
            values[len(kept) : len(kept) + len(places)], labels = self.pair(batch.values, torch.tensor(places).long())
            truth.append(labels)
            kept += places
            bad += [reason for _, reason in batch.bad]
            start += len(batch.good) + len(batch.bad)
        check_bad(bad, len(self), skip_bad=True)
        make: Any = ImageSet if self.modality is IMAGE else ArraySet
        groups = None if self.groups is None else self.groups[kept]
        return make(values[: len(kept)], torch.cat(truth), self.classes, preprocess=self.preprocess, groups=groups)

    def cached(self, directory: Path | str) -> Self:
        """Return the same images with their decoded pixels kept in a directory; a full disk is one :class:`DataWarning`."""
        if not isinstance(self.reader, EncodedImages):
            kind = type(self.reader).__name__
            raise InputError(f"cache: it is for encoded images, {kind} gives decoded samples. Fix: leave it out")
        part = copy.copy(self)
        part.reader = copy.copy(self.reader)
        part.reader.cache = PixelCache(directory)
        return part

    @property
    def bad(self) -> tuple[str, ...]:
        """Samples that could not be read so far, each once and with the reason; subsets of one set share them."""
        return tuple(self.unreadable.values())

    def name(self, index: int) -> str:
        """Return the file, or file and row, of a sample."""
        return self.reader.name(int(self.rows[index]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        batch = next(self.decode([[int(self.rows[index])]]))
        self.check(batch, skip=False)
        values, labels = self.pair(batch.values, torch.tensor([index]))
        return self.preprocess.normalise(values[0]), labels[0]

    def pair(self, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return what was decoded of the samples at ``places`` as their values and their labels."""
        return values, self.labels[places]

    def decode(self, plan: Sequence[Sequence[int]], workers: int = 0) -> Iterator[Decoded]:
        """Yield batches of these rows of the reader, not yet normalised; the caller passes each of them to :meth:`check`."""
        return decode_batches(self.reader, plan, self.shape, workers, dtype=self.dtype)

    @property
    def samples_at_once(self) -> int:
        """Number of samples to decode in a batch that no network needs: few if they are large."""
        return max(1, min(LOADED_AT_ONCE, LOADED_BYTES // max(1, prod(self.shape) * self.dtype.itemsize)))

    def decode_all(self) -> Iterator[Decoded]:
        """Yield all samples in small checked batches, not yet normalised."""
        plan = [rows.tolist() for rows in self.rows.split(self.samples_at_once)]
        for batch in self.decode(plan, choose_workers(self.workers, len(plan))):
            self.check(batch)
            yield batch

    def leave_out_bad(self) -> Self:
        """Return the samples that nothing has failed to read so far."""
        kept = [i for i, row in enumerate(self.rows.tolist()) if row not in self.unreadable]
        return self.subset(torch.tensor(kept, dtype=torch.int64))

    @property
    def inputs(self) -> Tensor:
        """All samples as network input, read anew at each call: take a small :meth:`subset` first."""
        return self.load().inputs  # type: ignore[no-any-return]

    def check(self, batch: Decoded, skip: bool = True) -> None:
        """Record the bad samples of a batch; raise a :class:`DataError` for the first if none may be skipped."""
        if batch.trouble and batch.trouble not in self._told:
            self._told.add(batch.trouble)
            warnings.warn(batch.trouble, DataWarning, stacklevel=2)
        self.unreadable |= dict(batch.bad)
        if batch.bad and not (skip and self.skip_bad):
            raise refuse_bad(batch.bad[0][1], "repair it")


def check_files(parts: Iterable[SampleSet], workers: int | None, bar: Progress) -> None:
    """Raise a :class:`DataError` that names the image files that are bad, as far as :class:`FileCheck` can tell."""
    sets = [part for part in parts if isinstance(part, LazySet) and isinstance(part.reader, ImageFiles)]
    total, bad = sum(map(len, sets)), list[str]()
    task = bar.add_task("checking the files", total=total)
    for part in sets:
        plan = [rows.tolist() for rows in part.rows.split(LOADED_AT_ONCE)]
        for batch in decode_batches(FileCheck(part.reader), plan, (0,), choose_workers(workers, len(plan))):  # type: ignore[arg-type]
            bad += [reason for _, reason in batch.bad]
            bar.advance(task, len(batch.good) + len(batch.bad))
    check_bad(bad, total, skip_bad=False)


def _check_shape(shape: Sequence[int], preprocess: Preprocess | ArrayPreprocess, kind: Modality, name: str) -> None:
    if len(shape) != len(kind.axes) or shape[0] != len(preprocess.mean):
        start = "N," if name == "values" else ""
        expected = ",".join((str(len(preprocess.mean)), *kind.axes[1:]))
        raise InputError(f"{name}: expected ({start}{expected}) of {kind.plural}, got ({start}{','.join(map(str, shape))})")


def set_reading(data: T, workers: int | None, cache: Path | None) -> T:
    """Return the same set, read by ``workers`` processes, its pixels cached in a directory; ``None`` changes nothing."""
    if cache is not None and not (isinstance(data, LazySet) and data.modality is IMAGE):
        has = "these data are in memory, or not images"
        raise InputError(f"cache: it is for images that are decoded from files; {has}. Fix: leave it out")
    if not isinstance(data, LazySet):
        return data
    choose_workers(workers, 2)
    part = data.first(len(data)) if cache is None else data.cached(cache)
    part.workers = workers
    return part


def measure_scaling(train: ArraySet | LazySet, seed: int = 0) -> ArrayPreprocess:
    """Return a training split's preprocessing with the mean and std of its channels; a std of 1 for a constant channel.

    At most :data:`MEASURED` files are read, drawn at random by ``seed``.
    """
    if not len(train):
        raise DataError("data: the training split is empty: mean and std cannot be measured")
    if isinstance(train, LazySet):
        part = train.subset(draw_samples(len(train), MEASURED, seed).sort().values)
        parts = (batch.values for batch in part.decode_all() if batch.good)
    else:
        parts = iter(train.values.split(1024))
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None  # values are moved by it first, or the squares of large ones would cancel
    for values in parts:
        flat = values.movedim(1, 0).flatten(1).double()  # (C,n)
        shift = flat.mean(1, keepdim=True) if shift is None else shift
        flat = flat - shift
        count, total, squares = count + flat.shape[1], total + flat.sum(1), squares + flat.square().sum(1)
    if shift is None:  # every file is bad
        check_bad(train.bad, len(train.bad), skip_bad=True)  # type: ignore[union-attr]
    assert shift is not None
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    middle = mean + shift[:, 0]
    is_constant = std <= 1e-7 * middle.abs().clamp(min=1e-30)
    return train.preprocess.scaled(middle.tolist(), torch.where(is_constant, 1.0, std).tolist())
