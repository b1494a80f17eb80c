"""NumPy arrays and texts in memory as a network's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exitlens.data.sets import ArraySet, measure_scaling
from exitlens.data.texts import word_tokenizer
from exitlens.errors import InputError
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocess, Preprocessing, SeriesPreprocess, TextPreprocess, VectorPreprocess

MOST_TOKENS = 128  # of a text


def are_texts(samples: Any) -> bool:
    """Return whether samples are a list, an array or a series of strings."""
    is_flat = isinstance(samples, list | tuple) or getattr(samples, "ndim", 0) == 1
    return is_flat and len(samples) > 0 and isinstance(next(iter(samples)), str)


def arrange(samples: Any) -> Tensor:
    """Return an array as a tensor with channels first: images ``(N,C,H,W)`` or ``(N,H,W,C)``, else ``(N,F)`` or ``(N,C,T)``.

    Images are whole numbers up to 255 or floats up to 1, and become ``uint8`` or ``float32``; other arrays ``float32``.
    """
    if samples.ndim in (2, 3):
        return torch.tensor(samples, dtype=torch.float32)
    if samples.ndim != 4 or (samples.shape[1] not in (1, 3) and samples.shape[3] not in (1, 3)):
        kinds = "vectors (N,F), series (N,C,T), or images (N,C,H,W) or (N,H,W,C) of 1 or 3 channels"
        raise InputError(f"X: expected {kinds}, got {samples.shape}")
    limit, low, high = 255 if samples.dtype.kind in "iu" else 1, samples.min(), samples.max()
    if low < 0 or high > limit:
        raise InputError(f"X: expected images from 0 to {limit}, got {low:.4g} to {high:.4g}. Fix: scale them to [0, 1].")
    pixels = torch.tensor(samples, dtype=torch.uint8 if limit == 255 else torch.float32)
    return pixels if samples.shape[1] in (1, 3) else pixels.movedim(3, 1)


def choose_scaling(values: Tensor, names: Sequence[str] = ()) -> Preprocessing:
    """Choose how arrays become inputs: images are scaled as usual, vectors and series standardised as ``values`` are.

    ``values`` are training samples as :func:`arrange` returns them, ``names`` those of a vector's features.
    """
    count, channels, *size = values.shape
    if len(size) == 2:
        return Preprocess((size[0], size[1]), (0.5,) * channels, (0.25,) * channels)
    means, stds = (0.0,) * channels, (1.0,) * channels
    raw = SeriesPreprocess(means, stds, length=size[0]) if size else VectorPreprocess(means, stds, tuple(names))
    return measure_scaling(ArraySet(values, torch.zeros(count, dtype=torch.int64), ("", ""), raw))


def choose_tokens(texts: Sequence[str], tokenizer: str | None = None) -> TextPreprocess:
    """Choose how texts become tokens: as many as the longest has (at most 128); without a tokenizer, by their words."""
    whole = TextPreprocess(tokenizer or word_tokenizer(texts), MOST_TOKENS)
    return TextPreprocess(whole.tokenizer, int(whole.encode(texts)["attention_mask"].sum(1).max()))


def prepare(samples: Any, preprocess: Any) -> Inputs:
    """Return texts, or arrays as :func:`arrange` returns them, as a network's inputs."""
    return preprocess.encode(list(samples)) if isinstance(preprocess, TextPreprocess) else preprocess.normalise(samples)
