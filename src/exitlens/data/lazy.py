"""Image sets of any size: nothing is decoded before it is asked for."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.checks import check_bad, check_class_labels, check_groups
from exitlens.data.images import ImageSet
from exitlens.data.loading.readers import Reader
from exitlens.data.loading.workers import Decoded, decode_batches
from exitlens.errors import DataError, require
from exitlens.modalities import IMAGE, Modality
from exitlens.types import Preprocess

MEND = "remove it, or pass --skip-bad (skip_bad=True) to leave out files that cannot be read (a fit goes on with --resume)"


class LazyImages(Dataset[tuple[Tensor, Tensor]]):
    """Images decoded when they are asked for; item ``i`` is ``(normalised float image (C,H,W), label)``.

    Whatever takes it in batches decodes in processes of its own, see :func:`~exitlens.data.batches.iterate_batches`. A bad
    image ends the iteration with a :class:`DataError` that names it; with ``skip_bad`` it is missing from its batch, and
    recorded.

    Args:
        reader: gives the pixels of M images.
        labels: ``(M,)`` ``int64``.
        classes: class names, in label order.
        preprocess: how pixels become network input.
        groups: optional ``(M,)`` ``int64``: images with the same number belong together.
        skip_bad: leave out images that cannot be read.

    Raises:
        InputError: where counts, shapes or values do not fit.
    """

    modality: ClassVar[Modality] = IMAGE
    masks: Tensor | None = None

    def __init__(
        self,
        reader: Reader,
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        groups: Tensor | None = None,
        skip_bad: bool = False,
    ) -> None:
        require(preprocess, Preprocess, "preprocess")
        self.labels = check_class_labels(labels, len(reader), classes, "image")
        self.reader, self.classes, self.preprocess = reader, tuple(classes), preprocess
        self.groups = check_groups(groups, len(reader))
        self.skip_bad = skip_bad
        self.rows = torch.arange(len(reader))  # of the reader
        self.unreadable: dict[int, str] = {}  # by row of the reader, shared by all subsets

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C,H,W)`` of every image."""
        return (len(self.preprocess.mean), *self.preprocess.size)

    @property
    def bad(self) -> tuple[str, ...]:
        """Images that could not be read so far, each once and with the reason; subsets of one set share them."""
        return tuple(self.unreadable.values())

    def name(self, index: int) -> str:
        """The file, or file and row, of image ``index``."""
        return self.reader.name(int(self.rows[index]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        found = next(decode_batches(self.reader, [[int(self.rows[index])]], self.shape))
        self.check(found, skip=False)
        return self.preprocess.normalise(found.pixels[0]), self.labels[index]

    def load(self) -> ImageSet:
        """All images in memory: of small subsets. Images that are skipped as bad are missing from it."""
        plan = [self.rows.tolist()]
        found = next(decode_batches(self.reader, plan, self.shape))
        self.check(found)
        check_bad([reason for _, reason in found.bad], len(self), skip_bad=True)
        groups = None if self.groups is None else self.groups[found.good]
        return ImageSet(found.pixels, self.labels[found.good], self.classes, None, self.preprocess, groups)

    @property
    def inputs(self) -> Tensor:
        """All images as network input ``(N,C,H,W)``, read anew at each call: take a small :meth:`subset` first."""
        return self.load().inputs

    def first(self, count: int) -> Self:
        """The first ``count`` images (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """The images at ``indices`` (``(n,)`` integers) as a set of its own; nothing is read."""
        part = copy.copy(self)
        part.rows, part.labels = self.rows[indices], self.labels[indices]
        part.groups = None if self.groups is None else self.groups[indices]
        return part

    def check(self, found: Decoded, skip: bool = True) -> None:
        """Records the bad images of a batch, or raises a :class:`DataError` for the first where none may be skipped."""
        self.unreadable |= dict(found.bad)
        if found.bad and not (skip and self.skip_bad):
            raise DataError(f"data: {found.bad[0][1]}: {MEND}")


Images = ImageSet | LazyImages
