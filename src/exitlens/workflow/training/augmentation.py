"""Augmentation of training images by torchvision's ``transforms.v2``, drawn anew for every image of a batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from exitlens.errors import InputError
from exitlens.types.preprocessing import Preprocess
from exitlens.types.settings import check_choice
from exitlens.types.tasks import IGNORE

AUGMENTATIONS = ("none", "flip", "crop", "trivial")
SMALLEST_CROP = 0.35  # share of the image's area
_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_SPACE = v2.TrivialAugmentWide._AUGMENTATION_SPACE


class _Move(v2.TrivialAugmentWide):  # type: ignore[misc]
    """The operations of TrivialAugment that move objects, so that a mask has to follow."""

    _AUGMENTATION_SPACE: ClassVar[dict[str, Any]] = {name: _SPACE[name] for name in _MOVES}


class _Recolour(v2.TrivialAugmentWide):  # type: ignore[misc]
    """The operations of TrivialAugment that leave every object where it is."""

    _AUGMENTATION_SPACE: ClassVar[dict[str, Any]] = {name: value for name, value in _SPACE.items() if name not in _MOVES}


class Augmentation:
    """Changes every image of a batch of normalised images by a draw of its own, for ``fit(augment=)``.

    All random numbers come from PyTorch's global generator, which ``fit`` seeds for every epoch.

    Args:
        transform: ``"flip"`` mirrors half of the images; ``"crop"`` also resizes a part of 35 to 100 % of the area to the
            full size (``RandomResizedCrop``); ``"trivial"`` adds an operation of TrivialAugmentWide (arXiv 2103.10158) at a
            random strength. A transform of the user's gets pixels as floats in [0, 1].
        preprocess: tells how pixels were normalised; ``"flip"`` and ``"crop"`` do not need it.
    """

    def __init__(self, transform: str | v2.Transform, preprocess: Preprocess | None = None) -> None:
        if isinstance(transform, str):
            check_choice("augment", transform, AUGMENTATIONS[1:])
        self.transform, self.preprocess = transform, preprocess
        self.sees_pixels = transform not in ("flip", "crop")
        if self.sees_pixels and preprocess is None:
            raise InputError(
                f"augment: {transform!r} changes colours, and it is not known how they were normalised. "
                "Fix: call net.describe(preprocess=exitlens.data.Preprocess(size, mean, std)) first."
            )

    def __call__(self, images: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C,H,W)
        """Return changed images."""
        return self.with_masks(images, None)[0]

    def with_masks(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the views, and their masks ``(B,H,W)`` ``bool``, moved as the images were."""
        views, moved = self._draw_all(images, masks, 0)
        return views, None if moved is None else moved.bool()

    def with_labels(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views, and their labels ``(B,H,W)`` of pixels, moved as the images were; new pixels have none (255).

        A transform of the user's has to say so itself, such as ``RandomRotation(10, fill={tv_tensors.Mask: 255})``.
        """
        views, moved = self._draw_all(images, labels.to(torch.uint8), IGNORE)
        assert moved is not None
        return views, moved.long()

    def _draw_all(self, images: Tensor, masks: Tensor | None, fill: int) -> tuple[Tensor, Tensor | None]:
        pixels = self._shift_scale(images, back=True) if self.sees_pixels else images
        covers = [None] * len(pixels) if masks is None else [tv_tensors.Mask(mask) for mask in masks]
        pairs = [self._draw(tv_tensors.Image(image), cover, fill) for image, cover in zip(pixels, covers, strict=True)]
        for pair in pairs:
            for kept, view in zip((images.shape[1:], images.shape[2:]), pair, strict=True):
                if view is not None and view.shape != kept:
                    raise InputError(
                        f"augment: expected images and masks of {tuple(kept)} again, got {tuple(view.shape)}. Fix: choose "
                        "transforms that keep channels and size, or end with v2.Resize."
                    )
        views = torch.stack([image.as_subclass(Tensor) for image, _ in pairs])
        moved = None if masks is None else torch.stack([m.as_subclass(Tensor) for _, m in pairs if m is not None])
        return self._shift_scale(views, back=False) if self.sees_pixels else views, moved

    def _draw(self, image: Tensor, mask: Tensor | None, fill: int) -> tuple[Tensor, Tensor | None]:  # (C,H,W), (H,W)
        if not isinstance(self.transform, str):
            return self._apply(self.transform, image, mask)
        image, mask = self._apply(v2.RandomHorizontalFlip(), image, mask)
        if self.transform != "flip":
            crop = v2.RandomResizedCrop(tuple(image.shape[-2:]), scale=(SMALLEST_CROP, 1.0))
            image, mask = self._apply(crop, image, mask)
        if self.transform != "trivial":
            return image, mask
        if torch.rand(()) >= len(_MOVES) / len(_SPACE):
            return _Recolour()(image), mask
        state, moved = torch.get_rng_state(), _Move()(image)
        if mask is None:
            return moved, None
        torch.set_rng_state(state)
        return moved, tv_tensors.Mask(_Move(fill=fill)(mask.as_subclass(Tensor)[None].to(torch.uint8))[0])

    @staticmethod
    def _apply(transform: v2.Transform, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (transform(image), None) if mask is None else transform(image, mask)

    def _shift_scale(self, images: Tensor, back: bool) -> Tensor:
        """Turn normalised images into pixels in [0, 1], or back."""
        if self.preprocess is None:
            return images
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        return (images * std + mean).clamp(0, 1) if back else (images - mean) / std
