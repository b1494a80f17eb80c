"""Augmentation of training images by torchvision's ``transforms.v2``, drawn anew for every image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from exitlens.errors import InputError
from exitlens.types import Preprocess
from exitlens.types.settings import check_choice

AUGMENTATIONS = ("none", "flip", "crop", "trivial")
SMALLEST_CROP = 0.35  # of the image's area


class Augmentation:
    """A function of a batch of normalised images, for ``fit(augment=)``.

    A ``v2`` transform draws once for a whole batch; here it draws for every image. All random numbers come from PyTorch's
    global generator, which ``fit`` seeds for every epoch.

    Args:
        transform: ``"flip"``: half of the images mirrored. ``"crop"``: that, and a part of 35 to 100 % of the area resized
            to the full size (``RandomResizedCrop``). ``"trivial"``: both, and one operation of TrivialAugmentWide (arXiv
            2103.10158) at a random strength. Or a transform of the user's own, which gets pixels as floats in [0, 1].
        preprocess: how pixels were normalised; ``"flip"`` and ``"crop"`` do not need it.
    """

    def __init__(self, transform: str | v2.Transform, preprocess: Preprocess | None = None) -> None:
        if isinstance(transform, str):
            check_choice("augment", transform, AUGMENTATIONS[1:])
        self.transform, self.preprocess = transform, preprocess
        self.sees_pixels = transform not in ("flip", "crop")
        if self.sees_pixels and preprocess is None:
            raise InputError(
                f"augment: {transform!r} changes colours, and it is not known how they were normalised. "
                "Fix: call net.describe(preprocess=exitlens.Preprocess(size, mean, std)) first."
            )

    def __call__(self, images: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C,H,W)
        """Return other views of the same images."""
        pixels = self._shift_scale(images, back=True)
        views = torch.stack([self._draw(tv_tensors.Image(image)).as_subclass(Tensor) for image in pixels])
        if views.shape != images.shape:
            raise InputError(f"augment: expected images of {tuple(images.shape[1:])} again, got {tuple(views.shape[1:])}")
        return self._shift_scale(views, back=False)

    def _draw(self, image: Tensor) -> Tensor:  # (C,H,W)
        if not isinstance(self.transform, str):
            return self.transform(image)  # type: ignore[no-any-return]
        view: Tensor = v2.RandomHorizontalFlip()(image)
        if self.transform != "flip":
            view = v2.RandomResizedCrop((view.shape[-2], view.shape[-1]), scale=(SMALLEST_CROP, 1.0))(view)
        return v2.TrivialAugmentWide()(view) if self.transform == "trivial" else view

    def _shift_scale(self, images: Tensor, back: bool) -> Tensor:
        """Turn normalised images into pixels in [0, 1], or back, if the transform needs pixels."""
        if self.preprocess is None or not self.sees_pixels:
            return images
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        return (images * std + mean).clamp(0, 1) if back else (images - mean) / std
