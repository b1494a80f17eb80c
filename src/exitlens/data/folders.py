"""Image folders (``class/name.png``), single image files, and torchvision's data sets from a local root."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from exitlens.data.images import ImageSet
from exitlens.errors import DataError, InputError, require, suggest
from exitlens.types import Preprocess

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # raster formats that run nothing to be read


@dataclass(frozen=True)
class FolderReport:
    """What was found in a folder: ``bad`` lists the files that could not be read, each with the reason."""

    files: tuple[Path, ...]
    bad: tuple[str, ...] = field(default=())


def read_image(
    path: Path, size: tuple[int, int] | None, channels: int, max_pixels: int = MAX_PIXELS
) -> Tensor:  # -> (C,H,W) uint8
    """Decodes one image file (see :func:`open_picture`), resized to ``size`` (height, width) by antialiased interpolation.

    Raises:
        DataError: as :func:`open_picture` does.
    """
    picture = open_picture(path, channels, max_pixels)
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(picture).copy())
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def open_picture(path: Path, channels: int = 3, max_pixels: int = MAX_PIXELS, longest: int | None = None) -> Image.Image:
    """Decodes one image file, in grey (1 channel) or colour (3).

    The orientation tag of cameras is followed; transparency is dropped, as torchvision's ImageFolder does; 16-bit grey is
    scaled to 8 bits; of animations the first frame is taken.

    Args:
        longest: pixels of the longer side at most: larger pictures are shrunk, as early as their format allows.

    Raises:
        DataError: for a file that is missing, truncated, not an image of a known format, or of more than ``max_pixels``.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(f"{path}: {image.width} x {image.height} pixels is over the limit of {max_pixels:,}")
            if longest is not None:
                image.draft(None, (longest, longest))  # JPEG: decoded at a fraction of its size
                if image.mode in ("L", "RGB", "CMYK"):
                    image.thumbnail((longest, longest))
            picture = _eight_bit(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for hostile files
        raise DataError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error
    if longest is not None:
        picture.thumbnail((longest, longest))
    return picture


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits (Pillow would clip it); other modes with more than 8 bits have no agreed range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no agreed range of values: convert it to 8 or 16 bits first")
    return image


def list_images(folder: Path) -> list[Path]:
    """Image files at any depth below ``folder``, sorted; or the one file that ``folder`` is.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"data: no file or folder {folder}: give a folder of images")
    found = sorted(p for p in folder.rglob("*") if _is_image(p, folder))
    if not found:
        raise DataError(f"data: no image files below {folder} (looked for {', '.join(EXTENSIONS)})")
    return found


def _is_image(path: Path, root: Path) -> bool:
    """Whether it is named like an image, and neither it nor a folder on the way from ``root`` is hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in EXTENSIONS and path.is_file()


def load_folder(
    folder: Path | str,
    preprocess: Preprocess,
    *,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
) -> tuple[ImageSet, FolderReport]:
    """Reads ``folder/class/name.png`` (torchvision's ImageFolder convention) into memory.

    Args:
        folder: one subfolder per class.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        classes: the names to use, in label order; by default the subfolders, sorted.
        skip_bad: leave out files that cannot be read and report them, instead of stopping at the end with all of them.

    Raises:
        DataError: no classes, one class, a folder that is no known class, or unreadable files.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"data: no folder {root}: give a folder with one subfolder of images per class")
    present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = tuple(classes) or tuple(present)
    if len(names) < 2:
        raise DataError(f"data: {root} has {len(names)} class folder(s), need 2 or more: folder/class/name.png")
    unknown = [name for name in present if name not in names]
    if unknown:
        raise DataError(f"data: {root} has the class {unknown[0]!r}, the network has not.{suggest(unknown[0], names)}")
    files = [(path, names.index(name)) for name in present for path in list_images(root / name)]
    images, labels, kept, bad = [], [], [], []
    for path, label in files:
        try:
            images.append(read_image(path, preprocess.size, len(preprocess.mean)))
            labels.append(label)
            kept.append(path)
        except DataError as error:
            bad.append(str(error))
    if not files:
        raise DataError(
            f"data: {root} has no image in a class folder ({', '.join(names[:3])}, ...): expected folder/class/name.png"
        )
    check_bad(bad, len(files), skip_bad)
    data = ImageSet(torch.stack(images), torch.tensor(labels), names, preprocess=preprocess)
    return data, FolderReport(tuple(kept), tuple(bad))


def load_unlabelled(folder: Path | str, preprocess: Preprocess, *, skip_bad: bool = False) -> tuple[Tensor, FolderReport]:
    """Reads every image below ``folder`` as normalised input ``(N,C,H,W)``, whatever the subfolders."""
    files = list_images(Path(folder))
    images, kept, bad = [], [], []
    for path in files:
        try:
            images.append(read_image(path, preprocess.size, len(preprocess.mean)))
            kept.append(path)
        except DataError as error:
            bad.append(str(error))
    check_bad(bad, len(files), skip_bad)
    return preprocess.normalise(torch.stack(images)), FolderReport(tuple(kept), tuple(bad))


class ImageStream:
    """Image files as normalised batches ``(B,C,H,W)``, read while they are asked for; every batch but the last is full.

    Args:
        files: image files, in the order of the answers.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        batch_size: images in a batch.
        skip_bad: leave out files that cannot be read and list them in :attr:`bad`; otherwise the first of them ends the
            iteration with a :class:`DataError`, after the images before it.

    Attributes:
        files: the images in the batches so far, in order.
        bad: the files that could not be read so far, each with the reason.
        total: how many files there are to read.
    """

    def __init__(self, files: Sequence[Path], preprocess: Preprocess, batch_size: int, skip_bad: bool = False) -> None:
        require(preprocess, Preprocess, "preprocess")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
        self.files: list[Path] = []
        self.bad: list[str] = []
        self.total = len(files)
        self._all, self._preprocess, self._batch_size, self._skip_bad = tuple(files), preprocess, batch_size, skip_bad

    def __len__(self) -> int:
        """How many batches, where every file can be read."""
        return -(-self.total // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        self.files, self.bad = [], []
        batch: list[tuple[Path, Tensor]] = []
        failed: DataError | None = None
        for path in self._all:
            try:
                batch.append((path, read_image(path, self._preprocess.size, len(self._preprocess.mean))))
            except DataError as error:
                self.bad.append(str(error))
                if not self._skip_bad:
                    failed = error
                    break
            if len(batch) == self._batch_size:
                yield self._close_batch(batch)
                batch = []
        if batch:
            yield self._close_batch(batch)
        if failed is not None:
            mend = "remove it, or pass --skip-bad (skip_bad=True) to leave out files that cannot be read"
            raise DataError(f"data: {failed}: {mend if self.total > 1 else 'give another image'}") from failed

    def _close_batch(self, batch: list[tuple[Path, Tensor]]) -> Tensor:
        self.files += [path for path, _ in batch]
        return self._preprocess.normalise(torch.stack([pixels for _, pixels in batch]))


def check_bad(bad: Sequence[str], total: int, skip_bad: bool, kind: str = "files") -> None:
    """Raises :class:`DataError` naming the unreadable files, unless they may be skipped and others remain."""
    if bad and (not skip_bad or len(bad) == total):
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        mend = "" if len(bad) == total else "; remove them, or pass --skip-bad (skip_bad=True) to leave them out"
        raise DataError(f"data: {len(bad)} of {total} {kind} cannot be read{mend}:\n  {shown}")


class Splittable(Protocol):
    """What :func:`split_set` needs of a data set: an image set and a text set have it."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` integers."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""

    def subset(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (``(n,)`` integers) as a set of its own."""


_Set = TypeVar("_Set", bound=Splittable)


def split_set(data: _Set, shares: Sequence[float], seed: int = 0) -> list[_Set]:
    """Disjoint random parts of a set with these shares of every class (the rest is left over for the last part).

    Raises:
        DataError: if a class has too few samples to give every part one.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise InputError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    rng = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in range(len(data.classes)):
        where = (data.labels == label).nonzero().flatten()
        if 0 < len(where) < len(shares):
            raise DataError(f"data: class {data.classes[label]!r} has {len(where)} sample(s), need {len(shares)} or more")
        where = where[torch.randperm(len(where), generator=rng)]
        start = 0
        for i, share in enumerate(shares):
            left = len(shares) - 1 - i
            count = len(where) - start if left == 0 else min(max(1, round(share * len(where))), len(where) - start - left)
            parts[i].append(where[start : start + max(count, 0)])
            start += max(count, 0)
    return [data.subset(torch.cat(part).sort().values) for part in parts]


def load_torchvision(name: str, root: Path | str, train: bool) -> ImageSet:
    """A torchvision data set by class name (``FashionMNIST``, ``CIFAR10``) from files that are there already.

    Raises:
        InputError: for an unknown name; DataError: if the files are not below ``root``.
    """
    from torchvision import datasets

    known = [n for n in datasets.__all__ if hasattr(getattr(datasets, n), "classes") or n.startswith("CIFAR")]
    if name not in datasets.__all__:
        raise InputError(f"data: torchvision has no data set {name!r}.{suggest(name, known)}")
    try:
        source = getattr(datasets, name)(root=str(root), train=train, download=False)
    except (RuntimeError, FileNotFoundError, TypeError) as error:
        raise DataError(
            f"data: torchvision:{name} cannot be loaded from {root} ({error}): put its files there first, for example by "
            f"torchvision.datasets.{name}(root, download=True) on a machine with network access"
        ) from error
    pixels = torch.as_tensor(np.asarray(source.data))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(np.asarray(source.targets))
    classes = tuple(map(str, getattr(source, "classes", range(int(labels.max()) + 1))))
    return ImageSet(pixels.to(torch.uint8), labels, classes)
