"""In-memory image sets: ``uint8`` pixels with labels and, where there are any, object masks."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.checks import check_class_labels, check_groups
from exitlens.errors import InputError, require
from exitlens.modalities import IMAGE, Modality
from exitlens.types import Preprocess


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory; item ``i`` is ``(normalised float image (C,H,W), label)``.

    Args:
        images: ``(N,C,H,W)`` ``uint8``.
        labels: ``(N,)`` ``int64``; of several labels ``(N,C)`` of 0 and 1.
        classes: class names, in label order.
        masks: optional ``(N,H,W)`` ``bool``: where the object is.
        preprocess: how pixels become network input; by default scaled to [-2, 2].
        groups: optional ``(N,)`` ``int64``: images with the same number belong together.

    Examples:
        >>> pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> data = xl.ImageSet(pixels, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
        >>> data.inputs.shape, data[0][0].min().item()
        (torch.Size([4, 3, 32, 32]), -2.0)
    """

    modality: ClassVar[Modality] = IMAGE

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
        if masks is not None and len(masks) != len(images):
            raise InputError(f"masks: expected {len(images)}, one per image; got {len(masks)}")
        self.images, self.masks, self.classes = images, masks, tuple(classes)
        self.labels = check_class_labels(labels, len(images), classes, "image")
        self.groups = check_groups(groups, len(images))
        channels, size = images.shape[1], (int(images.shape[2]), int(images.shape[3]))
        if preprocess is not None and len(preprocess.mean) != channels:
            raise InputError(f"preprocess: it is for {len(preprocess.mean)} channels, the images have {channels}")
        self.preprocess = preprocess or Preprocess(size, (0.5,) * channels, (0.25,) * channels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def inputs(self) -> Tensor:
        """All images as network input ``(N,C,H,W)``, normalised anew at each call; take a :meth:`subset` first if large."""
        return self.preprocess.normalise(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.preprocess.normalise(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        inputs = self.preprocess.normalise(self.images[indices])
        return list(zip(inputs, self.labels[indices], strict=True))

    def first(self, count: int) -> Self:
        """The first ``count`` images (all, if there are fewer)."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, indices: Tensor) -> Self:
        """The images at ``indices`` (``(n,)`` integers) as a set of its own."""
        masks = None if self.masks is None else self.masks[indices]
        groups = None if self.groups is None else self.groups[indices]
        return type(self)(self.images[indices], self.labels[indices], self.classes, masks, self.preprocess, groups)
