"""Image folders (``class/name.png``), and torchvision's data sets from a local root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exitlens.data.checks import check_bad
from exitlens.data.images import ImageSet
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities.image import read_image
from exitlens.types import Preprocess

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class FolderReport:
    """What was found in a folder: ``bad`` lists the files that could not be read, each with the reason."""

    files: tuple[Path, ...]
    bad: tuple[str, ...] = field(default=())


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
    folder: Path | str, preprocess: Preprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
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
    files = {path: names.index(name) for name in present for path in list_images(root / name)}
    if not files:
        raise DataError(
            f"data: {root} has no image in a class folder ({', '.join(names[:3])}, ...): expected folder/class/name.png"
        )
    images, report = _read_all(list(files), preprocess, skip_bad)
    labels = torch.tensor([files[path] for path in report.files])
    return ImageSet(images, labels, names, preprocess=preprocess), report


def load_unlabelled(folder: Path | str, preprocess: Preprocess, *, skip_bad: bool = False) -> tuple[Tensor, FolderReport]:
    """Reads every image below ``folder`` as normalised input ``(N,C,H,W)``, whatever the subfolders."""
    images, report = _read_all(list_images(Path(folder)), preprocess, skip_bad)
    return preprocess.normalise(images), report


def _read_all(files: Sequence[Path], preprocess: Preprocess, skip_bad: bool) -> tuple[Tensor, FolderReport]:
    """The images ``(N,C,H,W)`` ``uint8`` of the files that can be read, and which those are."""
    images, kept, bad = [], [], []
    for path in files:
        try:
            images.append(read_image(path, preprocess.size, len(preprocess.mean)))
            kept.append(path)
        except DataError as error:
            bad.append(str(error))
    check_bad(bad, len(files), skip_bad)
    return torch.stack(images), FolderReport(tuple(kept), tuple(bad))


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
