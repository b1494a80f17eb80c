"""In-memory image sets: ``uint8`` pixels with labels and, where there are any, object masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.errors import InputError


@dataclass(frozen=True)
class Preprocess:
    """How pixels become network input: resize to ``size`` (height, width), scale to [0, 1], then ``(x - mean) / std``."""

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def normalise(self, pixels: Tensor) -> Tensor:  # (..., C, H, W) uint8 or float in [0, 1]
        """Scales ``uint8`` pixels to [0, 1] and standardises each channel; the size is left as it is."""
        x = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels.float()
        shape = (-1, 1, 1)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)

    def restore(self, x: Tensor) -> Tensor:  # (..., C, H, W) float
        """Inverse of :meth:`normalise`, clipped to [0, 1]: the picture a person sees."""
        shape = (-1, 1, 1)
        return (x * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of :meth:`to_dict`."""
        height, width = values["size"]
        return cls((int(height), int(width)), tuple(map(float, values["mean"])), tuple(map(float, values["std"])))


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory; item ``i`` is ``(normalised float image (C,H,W), label)``.

    Args:
        images: ``(N,C,H,W)`` ``uint8``.
        labels: ``(N,)`` ``int64``.
        classes: class names, in label order.
        masks: optional ``(N,H,W)`` ``bool``: where the object is.
        preprocess: how pixels become network input; by default scaled to [-2, 2].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        masks: Tensor | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InputError(f"images: expected (N,C,H,W) uint8, got {tuple(images.shape)} {images.dtype}")
        if len(labels) != len(images) or (masks is not None and len(masks) != len(images)):
            raise InputError(f"labels and masks: expected {len(images)} of each, one per image; got {len(labels)} labels")
        self.images, self.labels, self.masks, self.classes = images, labels.long(), masks, tuple(classes)
        channels, size = images.shape[1], (int(images.shape[2]), int(images.shape[3]))
        self.preprocess = preprocess or Preprocess(size, (0.5,) * channels, (0.25,) * channels)
        self.inputs = self.preprocess.normalise(images)  # (N,C,H,W) float32

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        inputs, labels = self.inputs[indices], self.labels[indices]
        return list(zip(inputs, labels, strict=True))

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` (``(n,)`` integers) as a set of its own."""
        masks = None if self.masks is None else self.masks[indices]
        return ImageSet(self.images[indices], self.labels[indices], self.classes, masks, self.preprocess)
