"""Images: floats ``(B,C,H,W)``, read from files; deletion fills cells with the mean colour, maps are drawn as squares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from exitlens.errors import DataError
from exitlens.functional.maps import enlarge
from exitlens.functional.regions import segment_by_colour
from exitlens.modalities.base import Modality
from exitlens.types.preprocessing import Preprocess

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # raster formats that run nothing to be read
OBJECT = 0.5  # least probability of a pixel of an object
LEAST_OBJECT, MOST_OBJECT = 0.02, 0.6  # share of the image that an object has
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # tag of cameras, and its values that swap height and width
_SIDE = 160  # pixels that a drawn image is wide


class ImageModality(Modality):
    """Images with samples ``(C,H,W)``."""

    name, plural, axes = "image", "images", ("C", "H", "W")
    expected = "a float tensor (B,C,H,W) with B >= 1 of images"
    preprocess = Preprocess
    reader = "xl.data.read_image and xl.data.Preprocess.normalise"
    given = "an image, a folder of images, Parquet, a saved data set or tar shards"
    head = "context"

    def decode(self, path: Path, preprocess: Preprocess) -> Tensor:
        """Read an image file."""
        return read_image(path, preprocess.size, len(preprocess.mean))

    def find_object(self, maps: Tensor, inputs: Tensor, region: Tensor) -> Tensor:
        """Mark the pixels whose colours are those that the maps point at; the region where colours tell nothing."""
        by_colour = segment_by_colour(inputs, enlarge(maps, inputs.shape[2:])) > OBJECT
        share = by_colour.flatten(1).float().mean(1).view(-1, 1, 1)
        is_object = (share > LEAST_OBJECT) & (share < MOST_OBJECT)
        return torch.where(is_object, by_colour, region)

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw squares over the picture, if the network knows its scale."""
        if not isinstance(preprocess, Preprocess):
            return ""
        from exitlens.display import map_svg, to_picture  # matplotlib takes a while to import

        base = to_picture(preprocess.restore(sample.float().cpu()))
        base = base.resize((_SIDE, round(_SIDE * base.height / base.width)))
        return map_svg(base, attention, evidence, label, str(_SIDE))


IMAGE = ImageModality()


def read_image(
    path: Path, size: tuple[int, int] | None, channels: int, max_pixels: int = MAX_PIXELS
) -> Tensor:  # -> (C,H,W) uint8
    """Decode an image file as :func:`open_picture` does, and resize it to ``size`` (height, width) with antialiasing.

    Examples:
        >>> from pathlib import Path
        >>> xl.data.read_image(Path("photos/cat/0.png"), size=(32, 32), channels=3).shape
        torch.Size([3, 32, 32])
    """
    return to_pixels(open_picture(path, channels, max_pixels), size, channels)


def decode_image(
    content: bytes, name: str, size: tuple[int, int] | None, channels: int, max_pixels: int = MAX_PIXELS
) -> Tensor:  # -> (C,H,W) uint8
    """Decode the bytes of an image file as :func:`read_image` does; errors call it ``name``."""
    return to_pixels(open_picture(io.BytesIO(content), channels, max_pixels, name=name), size, channels)


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image as :func:`open_picture` gives it, by the head of its file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION) in _TURNED else (height, width)
    except Exception as error:  # Pillow raises many kinds for hostile files
        raise DataError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error


def to_pixels(picture: Image.Image, size: tuple[int, int] | None, channels: int) -> Tensor:  # -> (C,H,W) uint8
    """Return the pixels of a grey (1 channel) or colour picture, resized to ``size`` (height, width) with antialiasing."""
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return torch.from_numpy(pixels[None].copy() if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def open_picture(
    file: Path | BinaryIO, channels: int = 3, max_pixels: int = MAX_PIXELS, longest: int | None = None, name: str = ""
) -> Image.Image:
    """Decode an image file in grey (1 channel) or colour (3); errors call it ``name``, by default its path.

    The orientation tag of cameras is followed; transparent pixels lie on white, as people see them (torchvision's
    ImageFolder drops transparency, so that drawings become black on black); 16-bit grey is scaled to 8 bits; animations
    give their first frame. A picture with a side longer than ``longest`` is shrunk, as early as its format allows.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                many = f"{image.width} x {image.height} pixels is over the limit of {max_pixels:,}"
                raise DataError(f"{name or file}: {many}. Fix: make it smaller")
            if longest is not None:
                image.draft(None, (longest, longest))  # JPEG: decoded at a fraction of its size
                if image.mode in ("L", "RGB", "CMYK"):
                    image.thumbnail((longest, longest))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("I", "F"):
                raise ValueError(f"mode {image.mode!r} has no agreed range of values. Fix: convert it to 8 or 16 bits")
            picture: Image.Image = image
            if image.mode.startswith("I;16"):  # Pillow would clip it
                picture = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
            if picture.has_transparency_data:
                coloured = picture if picture.mode == "RGBA" else picture.convert("RGBA")  # which always copies
                picture = Image.new("RGB", picture.size, "white")
                picture.paste(coloured, mask=coloured)
            mode = "L" if channels == 1 else "RGB"
            if picture is image or picture.mode != mode:
                picture = picture.convert(mode)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for hostile files
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is empty, or none of {', '.join(FORMATS)}"
        raise DataError(f"{name or file}: cannot be read as an image ({reason})") from error
    if longest is not None:
        picture.thumbnail((longest, longest))
    return picture
