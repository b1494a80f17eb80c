"""The library's preprocessing of image files and texts, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exitlens_runtime.errors import BundleError, InputError
from exitlens_runtime.routing import Array

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # raster formats that need no other program to be read


@dataclass(frozen=True)
class Preprocess:
    """Resizes to ``size`` (height, width), scales to [0, 1], then ``(x - mean) / std``."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self, path: Path) -> Array:  # -> (C,H,W) float32
        """Read an image file; raise :class:`InputError` if it is missing, broken, no image or too large."""
        from PIL import Image, ImageOps  # slow to import, and not needed for arrays

        channels = len(self.mean)
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{path}: expected at most {MAX_PIXELS:,} pixels, got {image.width} x {image.height}")
                ImageOps.exif_transpose(image, in_place=True)
                picture = _make_eight_bit(image)
                if picture.has_transparency_data:
                    coloured, picture = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
                    picture.paste(coloured, mask=coloured.getchannel("A"))
                picture = picture.convert("L" if channels == 1 else "RGB")
        except InputError:
            raise
        except Exception as error:  # Pillow raises many kinds for hostile files
            raise InputError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error
        if picture.size != (self.size[1], self.size[0]):
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.float32)
        return self.normalise(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))

    def normalise(self, pixels: Array) -> Array:  # (C,H,W), 0 to 255 -> (C,H,W) float32
        """Scale pixels to [0, 1] and standardise each channel."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255) - mean) / std)


def _make_eight_bit(image: Any) -> Any:
    """Scale 16-bit grey to 8 bits; other modes with more than 8 bits have no agreed range."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no agreed range of values. Fix: convert it to 8 or 16 bits")
    return image


@dataclass(frozen=True)
class TextPreprocess:
    """Turns texts into token ids, cut or padded at the end to ``length``; needs the extra ``text``."""

    tokenizer: str
    length: int

    @cached_property
    def _encoder(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise InputError(
                "texts: reading them needs the package tokenizers. Fix: pip install 'exitlens-runtime[text]'."
            ) from error
        encoder = Tokenizer.from_str(self.tokenizer)
        encoder.enable_truncation(self.length)
        names = ((encoder.padding or {}).get("pad_token", ""), *PADDING_TOKENS)
        token = next((name for name in names if encoder.token_to_id(name) is not None), "")
        encoder.enable_padding(length=self.length, pad_id=encoder.token_to_id(token) or 0, pad_token=token)
        return encoder

    def encode(self, texts: Sequence[str]) -> dict[str, Array]:
        """Return the texts as ``input_ids`` and ``attention_mask`` ``(B,N)``."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts: expected a list of at least one text, got {texts!r:.60}")
        rows = self._encoder.encode_batch(list(texts))
        values = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
        return {name: np.array(column, np.int64) for name, column in values.items()}


@dataclass(frozen=True)
class Scaling:
    """Standardises arrays of series, volumes and vectors by channel; the runtime does not read files of these."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axes: int  # number of axes of a sample, without its channels: 1 for a series, 3 for a volume, 0 for a vector
    time_first: bool = False  # True if the network takes series as (T,C)

    def normalise(self, values: Array) -> Array:  # (...,C,*S) -> the same float32, or (...,T,C)
        """Standardise each channel; raises :class:`InputError` for another number of them."""
        values = np.asarray(values, np.float32)
        if values.ndim <= self.axes or values.shape[-1 - self.axes] != len(self.mean):
            raise InputError(f"values: expected {len(self.mean)} channels before {self.axes} axes, got {values.shape}")
        mean, std = (np.asarray(numbers, np.float32).reshape(-1, *[1] * self.axes) for numbers in (self.mean, self.std))
        scaled = (values - mean) / std
        return np.ascontiguousarray(scaled.swapaxes(-1, -2) if self.time_first else scaled)


PADDING_TOKENS = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>")


def read_preprocess(values: Mapping[str, Any] | None, axes: int) -> Preprocess | TextPreprocess | Scaling | None:
    """Return the preprocessing that the manifest describes; ``axes``: number of a sample's axes, without channels."""
    if values is None:
        return None
    if "tokenizer" in values:
        return TextPreprocess(str(values["tokenizer"]), int(values["length"]))
    if {"mean", "std"} <= set(values) and axes != 2:
        mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
        return Scaling(mean, std, axes, bool(values.get("time_first", False)))
    if not {"size", "mean", "std"} <= set(values):
        raise BundleError(
            f"manifest: expected preprocessing of a known kind, got {sorted(values)}. Fix: update exitlens-runtime."
        )
    height, width = values["size"]
    return Preprocess((int(height), int(width)), tuple(map(float, values["mean"])), tuple(map(float, values["std"])))
