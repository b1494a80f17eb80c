"""The kinds of input that networks take; to add one, write its file and name it in :data:`MODALITIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.modalities.base import Modality, SeveralInputs
from exitlens.modalities.image import IMAGE
from exitlens.modalities.series import SERIES
from exitlens.modalities.text import TEXT
from exitlens.modalities.vector import VECTOR
from exitlens.modalities.volume import VOLUME
from exitlens.types.inputs import list_input_names, list_shapes

__all__ = [
    "IMAGE", "MODALITIES", "SERIES", "TEXT", "VECTOR", "VOLUME", "Modality", "SeveralInputs",
    "find_modality", "find_reader", "recognise_example",
]  # fmt: skip

MODALITIES: tuple[Modality, ...] = (IMAGE, TEXT, SERIES, VOLUME, VECTOR)


def find_modality(
    names: Sequence[str], shape: Sequence[int], dtypes: Sequence[torch.dtype] = (), shapes: Sequence[Sequence[int]] = ()
) -> Modality:
    """Return the kind of input that a network takes, or raise :class:`InputError`.

    A single tensor has no ``names``, floats in the network's dtype no ``dtypes``; ``shapes`` are those of samples of several
    inputs, if they differ from ``shape``.
    """
    if shapes and len(shapes) == len(names):
        kinds = dtypes or [torch.float32] * len(names)
        parts = [find_modality((), each, (kind,)) for each, kind in zip(shapes, kinds, strict=True)]
        return SeveralInputs(tuple(zip(names, parts, strict=True)))
    for modality in MODALITIES:
        if modality.fits(names, shape, dtypes):
            return modality
    raise InputError(f"inputs: no kind of input has samples of shape {tuple(shape)} and {list(dtypes) or 'floats'}")


def recognise_example(example: Any) -> Modality:
    """Return the kind of an example; raise :class:`InputError` unless it is a batch of a known kind."""
    tensors: list[Any] = list(example.values()) if isinstance(example, Mapping) else [example]
    if tensors and all(isinstance(t, Tensor) and t.ndim > 1 and len(t) and len(t) == len(tensors[0]) for t in tensors):
        names, dtypes, shapes = list_input_names(example), [t.dtype for t in tensors], list_shapes(example)
        with suppress(InputError):
            if shapes or all(t.shape == tensors[0].shape for t in tensors):
                return find_modality(names, tensors[0].shape[1:], dtypes, shapes)
    seen = ", ".join(f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__ for t in tensors)
    kinds = ", or ".join(modality.expected for modality in MODALITIES)
    raise InputError(f"example: expected {kinds}; or several of these by name; got {seen}")


def find_reader(forward: Callable[..., Any]) -> Modality:
    """Return the kind that fits the names of a backbone's arguments, or images if none does."""
    return next((m for m in MODALITIES if m.argument in signature(forward).parameters), IMAGE)
