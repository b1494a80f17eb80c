"""The kinds of input that networks take; to add one, write its file and name it in :data:`MODALITIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.modalities.base import Modality
from exitlens.modalities.image import IMAGE
from exitlens.modalities.series import SERIES
from exitlens.modalities.text import TEXT
from exitlens.modalities.vector import VECTOR
from exitlens.modalities.volume import VOLUME
from exitlens.types.inputs import list_input_names

__all__ = [
    "IMAGE",
    "MODALITIES",
    "SERIES",
    "TEXT",
    "VECTOR",
    "VOLUME",
    "Modality",
    "find_modality",
    "find_reader",
    "recognise_example",
]

MODALITIES: tuple[Modality, ...] = (IMAGE, TEXT, SERIES, VOLUME, VECTOR)


def find_modality(names: Sequence[str], shape: Sequence[int], dtypes: Sequence[torch.dtype] = ()) -> Modality:
    """The kind of input that a network takes.

    Args:
        names: of its tensors; empty for one tensor alone.
        shape: of one sample.
        dtypes: of its tensors; empty for floats in the network's own.

    Raises:
        InputError: if there is none such.
    """
    for modality in MODALITIES:
        if modality.fits(names, shape, dtypes):
            return modality
    raise InputError(f"inputs: no kind of input has samples of shape {tuple(shape)} and {list(dtypes) or 'floats'}")


def recognise_example(example: Any) -> Modality:
    """The kind of an example; raises :class:`InputError` unless it is a batch of one or more samples of a known kind."""
    tensors: list[Any] = list(example.values()) if isinstance(example, Mapping) else [example]
    if tensors and all(isinstance(t, Tensor) and t.ndim > 1 and len(t) and t.shape == tensors[0].shape for t in tensors):
        with suppress(InputError):
            return find_modality(list_input_names(example), tensors[0].shape[1:], [t.dtype for t in tensors])
    seen = ", ".join(f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__ for t in tensors)
    raise InputError(f"example: expected {', or '.join(m.expected for m in MODALITIES)}; got {seen}")


def find_reader(forward: Callable[..., Any]) -> Modality:
    """The kind of input that a backbone's ``forward`` takes, by the names of its arguments; images where none tells."""
    return next((m for m in MODALITIES if m.argument in signature(forward).parameters), IMAGE)
