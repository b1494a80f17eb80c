"""How pixels and texts become a network's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from exitlens.errors import InputError, import_extra, require

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PADDING_TOKENS = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>")


class Preprocessing(Protocol):
    """What every kind of preprocessing can do: describe itself for a bundle, and be made from that description."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""


@dataclass(frozen=True)
class Preprocess:
    """How pixels become network input: resize to ``size`` (height, width), scale to [0, 1], then ``(x - mean) / std``.

    Examples:
        >>> xl.Preprocess(size=(40, 40), mean=(0.5,) * 3, std=(0.25,) * 3).normalise(scenes.images[:2]).shape
        torch.Size([2, 3, 40, 40])
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size: expected height and width of 1 pixel or more, got {self.size}")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(f"mean, std: expected 1 or 3 of each, std above 0, got {self.mean} and {self.std}")

    def fit_to(self, size: tuple[int, int], channels: int) -> Preprocess:
        """The same for pixels of another size; for another number of channels, with the average of mean and std."""
        if channels == len(self.mean):
            return Preprocess(size, self.mean, self.std)
        mean, std = ((fmean(values),) * channels for values in (self.mean, self.std))
        return Preprocess(size, mean, std)

    def normalise(self, pixels: Tensor) -> Tensor:  # (..., C, H, W) uint8 or float in [0, 1]
        """Scales ``uint8`` pixels to [0, 1] and standardises each channel; the size is left as it is."""
        if pixels.ndim < 3 or pixels.shape[-3] != len(self.mean):
            raise InputError(f"pixels: expected (...,{len(self.mean)},H,W), got {tuple(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise InputError(f"pixels: expected uint8, or floats in [0, 1], got {pixels.dtype}")
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        if pixels.dtype == torch.uint8:
            return pixels.float().div_(255.0).sub_(mean).div_(std)  # in place: three times as fast
        return (pixels.float() - mean) / std

    def restore(self, x: Tensor) -> Tensor:  # (..., C, H, W) float
        """Inverse of :meth:`normalise`, clipped to [0, 1]: the picture a person sees."""
        return (x * torch.tensor(self.std).view(-1, 1, 1) + torch.tensor(self.mean).view(-1, 1, 1)).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of :meth:`to_dict`."""
        height, width = values["size"]
        return cls((int(height), int(width)), tuple(map(float, values["mean"])), tuple(map(float, values["std"])))


@dataclass(frozen=True)
class TextPreprocess:
    """How texts become network input: token ids, truncated to ``length`` and padded to it at the end.

    Args:
        tokenizer: the JSON of a Hugging Face ``tokenizers.Tokenizer`` (its ``to_str()``).
        length: tokens N of every input, those that the tokenizer adds of its own (``[CLS]``, ``[SEP]``) included.

    Raises:
        InputError: for a JSON that is no tokenizer, or a length that leaves no room for a text.
        MissingExtraError: where the package ``tokenizers`` is not installed.

    Examples:
        >>> preprocess = xl.TextPreprocess(xl.word_tokenizer(["a good lamp"]), length=8)
        >>> preprocess.encode(["a good lamp", "good"])["input_ids"].shape
        torch.Size([2, 8])
    """

    tokenizer: str = field(repr=False)
    length: int

    def __post_init__(self) -> None:
        require(self.tokenizer, str, "tokenizer", "give the JSON of a tokenizers.Tokenizer, its to_str()")
        require(self.length, int, "length")
        own = _open_tokenizer(self.tokenizer).num_special_tokens_to_add(False)
        if self.length <= own:
            raise InputError(f"length: expected {own + 1} tokens or more ({own} are the tokenizer's), got {self.length}")

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The texts as ``input_ids`` and ``attention_mask`` (1: a token, 0: padding), ``(B,N)`` ``int64`` each."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not len(texts):
            raise InputError(f"texts: expected a list of one text or more, got {texts!r:.60}")
        for i, text in enumerate(texts):
            require(text, str, f"texts[{i}]")
        try:
            found = _open_encoder(self.tokenizer, self.length).encode_batch(list(texts))
        except Exception as error:  # tokenizers raises plain Exception, and TypeError for half a surrogate pair
            raise InputError(
                f"texts: expected valid Unicode that the tokenizer knows or has an unknown token for ({error})"
            ) from error
        values = {"input_ids": [one.ids for one in found], "attention_mask": [one.attention_mask for one in found]}
        return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in values.items()}

    def tokens(self, input_ids: Tensor) -> list[str]:  # (N,) integers
        """The tokens that the ids stand for, padding included.

        Raises:
            InputError: for ids of another shape or type, or ids that the tokenizer has no token for.
        """
        require(input_ids, Tensor, "input_ids")
        if input_ids.ndim != 1 or input_ids.is_floating_point():
            raise InputError(f"input_ids: expected (N,) integers, got {tuple(input_ids.shape)} {input_ids.dtype}")
        tokenizer, size = _open_tokenizer(self.tokenizer), self.vocabulary_size
        found: list[str] = []
        for i in input_ids.tolist():
            token = tokenizer.id_to_token(i) if 0 <= i < size else None
            if token is None:
                raise InputError(f"input_ids: expected ids of tokens, in [0, {size}), got {i}: another tokenizer made them?")
            found.append(token)
        return found

    @property
    def vocabulary_size(self) -> int:
        """How many rows an embedding needs: the largest token id plus 1."""
        return _vocabulary_size(self.tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"tokenizer": self.tokenizer, "length": self.length}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TextPreprocess:
        """Inverse of :meth:`to_dict`."""
        return cls(values["tokenizer"], int(values["length"]))


def import_tokenizers() -> Any:
    """The optional package ``tokenizers``, or :class:`MissingExtraError`."""
    return import_extra("tokenizers", "hf", "text input")


@lru_cache(maxsize=8)
def _open_tokenizer(description: str) -> Any:  # -> tokenizers.Tokenizer, never to be changed
    package = import_tokenizers()
    try:
        return package.Tokenizer.from_str(description)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"tokenizer: expected the JSON of a tokenizers.Tokenizer ({error}): use its to_str()") from error


@lru_cache(maxsize=8)
def _open_encoder(description: str, length: int) -> Any:  # -> tokenizers.Tokenizer that truncates and pads
    tokenizer = import_tokenizers().Tokenizer.from_str(description)
    names = ((tokenizer.padding or {}).get("pad_token", ""), *PADDING_TOKENS)
    token = next((name for name in names if tokenizer.token_to_id(name) is not None), "")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(token) or 0, pad_token=token)
    return tokenizer


@lru_cache(maxsize=8)
def _vocabulary_size(description: str) -> int:
    return 1 + max(_open_tokenizer(description).get_vocab().values(), default=0)
