"""What a network takes: checked before any stage runs, so that no error comes from deep inside PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.maps import all_finite
from exitlens.types.inputs import MASK, Inputs


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a network.

    Attributes:
        names: of the tensors; empty for one tensor alone.
        shape: of one sample: ``(C,H,W)`` of an image, ``(N,)`` of a text.
        exact_size: images of another size do not fit (texts never do).
        vocabulary: for every tensor the number of tokens its embedding knows, or ``None``.
        prefix: tokens in front of a text that get no attention.
        dtypes: of the tokens and masks that the network was traced with; others are converted.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    exact_size: bool = False
    vocabulary: tuple[int | None, ...] = (None,)
    prefix: int = 0
    dtypes: tuple[torch.dtype, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether samples are sequences of tokens."""
        return len(self.shape) == 1

    def check(self, inputs: Inputs, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """The tensors, in the order that the first stage takes them.

        Args:
            inputs: a non-empty batch of finite floats ``(B,C,H,W)``, or of tokens ``(B,N)``, by name if there are names.
            name: of the argument, for the message.
            like: a parameter of the network: its device, and the dtype of images.

        Raises:
            InputError: for anything else.
        """
        if self.is_text:
            return self._texts(inputs, name, like)
        self._image(inputs, name, like)
        return (inputs,)  # type: ignore[return-value]

    def _image(self, images: object, name: str, like: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(images).__name__}")
        channels = self.shape[0]
        if images.ndim != 4 or images.shape[1] != channels:
            hint = " (add the batch axis: images[None])" if images.ndim == 3 else ""
            raise InputError(f"{name}: expected (B,{channels},H,W), got {tuple(images.shape)}{hint}")
        if len(images) == 0:
            raise InputError(f"{name}: the batch is empty: pass at least one image")
        if not images.is_floating_point():
            raise InputError(f"{name}: expected floats, got {images.dtype}: normalise uint8 pixels first (xl.Preprocess)")
        if images.dtype != like.dtype or images.device != like.device:
            raise InputError(
                f"{name}: expected {like.dtype} on {like.device} as the network, got {images.dtype} on "
                f"{images.device}: convert with images.to(...)"
            )
        if self.exact_size and tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"{name}: this network takes {self.shape} only, got {tuple(images.shape[1:])}: resize the images"
            )
        if min(images.shape[2:]) * 2 < min(self.shape[1:]):
            raise InputError(f"{name}: {tuple(images.shape[2:])} is far below the network's {self.shape[1:]}")
        if not all_finite(images):
            raise InputError(f"{name}: expected finite values, got NaN or Inf: check the loading of these images")

    def _texts(self, inputs: Inputs, name: str, like: Tensor) -> tuple[Tensor, ...]:
        if self.names and (not isinstance(inputs, Mapping) or not set(self.names) <= set(inputs)):
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise InputError(f"{name}: expected a dict with {list(self.names)}, got {got}: see TextPreprocess.encode")
        if not self.names and not isinstance(inputs, Tensor):
            raise InputError(f"{name}: expected a tensor of tokens (B,{self.shape[0]}), got {type(inputs).__name__}")
        tensors = tuple(inputs[n] for n in self.names) if isinstance(inputs, Mapping) else (inputs,)
        for part, tensor, known in zip(self.names or (name,), tensors, self.vocabulary, strict=True):
            where = f"{name}[{part!r}]" if self.names else name
            self._tokens(tensor, where, len(tensors[0]), known, like)
            if part == MASK:
                self._mask(tensor, where)
        return tuple(t.to(dtype) for t, dtype in zip(tensors, self.dtypes, strict=True)) if self.dtypes else tensors

    def _tokens(self, tensor: Tensor, name: str, batch: int, known: int | None, like: Tensor) -> None:
        length = self.shape[0]
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tuple(tensor.shape) != (batch, length):
            seen = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{name}: expected integers ({batch},{length}), got {seen}: pad or cut the texts to {length}")
        if batch == 0:
            raise InputError(f"{name}: the batch is empty: pass at least one text")
        if tensor.device != like.device:
            raise InputError(f"{name}: expected it on {like.device} as the network, got {tensor.device}: move it there")
        if known is not None and not bool(((tensor >= 0) & (tensor < known)).all()):
            low, high = int(tensor.min()), int(tensor.max())
            raise InputError(f"{name}: expected values in [0, {known}), got {low} to {high}: use the network's tokenizer")

    def _mask(self, mask: Tensor, name: str) -> None:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(f"{name}: expected 1 for a token and 0 for padding, got other values")
        empty = (mask[:, self.prefix :] != 0).sum(1) == 0
        if bool(empty.any()):
            row = int(empty.nonzero()[0])
            raise InputError(f"{name}: text {row} has no token to look at: leave empty texts out")


def check_example(example: Any) -> tuple[int, ...]:
    """Shape of one sample of an example; raises :class:`InputError` unless it is a batch of images or texts."""
    named = isinstance(example, Mapping)
    tensors: list[Any] = list(example.values()) if named else [example]
    good = bool(tensors) and all(isinstance(t, Tensor) and t.ndim in (2, 4) and len(t) > 0 for t in tensors)
    if good and tensors[0].ndim == 4:
        good = not named and tensors[0].is_floating_point()
    elif good:
        good = all(t.dtype in (torch.int64, torch.int32, torch.bool) and t.shape == tensors[0].shape for t in tensors)
    if not good:
        seen = ", ".join(f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__ for t in tensors)
        raise InputError(
            "example: expected a float tensor (B,C,H,W) with B >= 1 of images, or integer tokens (B,N), alone or in a dict "
            f"such as {{'input_ids': ..., 'attention_mask': ...}}; got {seen}"
        )
    return tuple(tensors[0].shape[1:])
