"""Image folders (``class/name.png``), and torchvision's data sets from a local root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitlens.data.checks import check_bad
from exitlens.data.images import ImageSet
from exitlens.data.lazy import LazyImages
from exitlens.data.loading.listing import EXTENSIONS, list_images, list_names
from exitlens.data.loading.packed import PackedStrings
from exitlens.data.loading.readers import ImageFiles
from exitlens.data.loading.workers import decode_batches
from exitlens.errors import DataError, InputError, suggest
from exitlens.types import Preprocess


@dataclass(frozen=True)
class FolderReport:
    """What a folder holds.

    Attributes:
        reader: of its images.
        unreadable: those that could not be read so far: number and reason.
    """

    reader: ImageFiles
    unreadable: Mapping[int, str] = field(repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files, without those that could not be read so far."""
        return tuple(Path(self.reader.name(i)) for i in range(len(self.reader)) if i not in self.unreadable)

    @property
    def bad(self) -> tuple[str, ...]:
        """The files that could not be read so far, each with the reason; none before anything was read."""
        return tuple(self.unreadable.values())


def load_folder(
    folder: Path | str, preprocess: Preprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> tuple[LazyImages, FolderReport]:
    """Lists ``folder/class/name.png`` (torchvision's ImageFolder convention); images are read when they are asked for.

    Args:
        folder: one subfolder per class.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        classes: the names to use, in label order; by default the subfolders, sorted.
        skip_bad: leave out files that cannot be read and report them, instead of stopping at the first.

    Returns:
        The set, and a report that grows as the set is read.

    Raises:
        DataError: no classes, one class, a folder that is no known class, or a class without an image.

    Examples:
        >>> data, report = xl.load_folder("photos", xl.Preprocess((40, 40), (0.5,) * 3, (0.25,) * 3))
        >>> len(data), data.classes
        (4, ('cat', 'dog'))
    """
    found = list_class_files(Path(folder), classes)
    reader = ImageFiles(Path(folder), found.names, preprocess)
    data = LazyImages(reader, found.labels, found.classes, preprocess, skip_bad=skip_bad)
    return data, FolderReport(reader, data.unreadable)


class ClassFiles(NamedTuple):
    """Files in class folders: their names relative to the root, labels ``(N,)`` and the classes' names."""

    names: PackedStrings
    labels: Tensor
    classes: tuple[str, ...]


def list_class_files(
    root: Path, classes: Sequence[str] = (), suffixes: tuple[str, ...] = EXTENSIONS, kind: str = "image"
) -> ClassFiles:
    """Lists ``root/class/name.png``, by default of images; arguments and errors as of :func:`load_folder`."""
    if not root.is_dir():
        raise DataError(f"data: no folder {root}: give a folder with one subfolder of {kind} files per class")
    usual = f"class/name{suffixes[0]}"
    present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = tuple(classes) or tuple(present)
    if len(names) < 2:
        raise DataError(f"data: {root} has {len(names)} class folder(s), need 2 or more: folder/{usual}")
    unknown = [name for name in present if name not in names]
    if unknown:
        raise DataError(f"data: {root} has the class {unknown[0]!r}, the network has not.{suggest(unknown[0], names)}")
    files = {name: list_names(root / name, suffixes, kind) for name in present}
    if not files:
        raise DataError(
            f"data: {root} has no {kind} in a class folder ({', '.join(names[:3])}, ...): expected folder/{usual}"
        )
    numbers, counts = [names.index(name) for name in files], [len(found) for found in files.values()]
    labels = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
    return ClassFiles(PackedStrings(f"{name}/{file}" for name, found in files.items() for file in found), labels, names)


def load_unlabelled(folder: Path | str, preprocess: Preprocess, *, skip_bad: bool = False) -> tuple[Tensor, FolderReport]:
    """Reads every image below ``folder`` into memory, as normalised input ``(N,C,H,W)``, whatever the subfolders.

    Examples:
        >>> inputs, report = xl.load_unlabelled("photos", xl.Preprocess((40, 40), (0.5,) * 3, (0.25,) * 3))
        >>> inputs.shape
        torch.Size([4, 3, 40, 40])
    """
    files = list_images(Path(folder))
    reader = ImageFiles(Path(), map(str, files), preprocess)
    found = next(decode_batches(reader, [range(len(files))], reader.shape))
    check_bad([reason for _, reason in found.bad], len(files), skip_bad)
    return preprocess.normalise(found.values), FolderReport(reader, dict(found.bad))


def load_torchvision(name: str, root: Path | str, train: bool) -> ImageSet:
    """A torchvision data set by class name (``FashionMNIST``, ``CIFAR10``) from files that are there already.

    Raises:
        InputError: for an unknown name; DataError: if the files are not below ``root``.

    Examples:
        >>> xl.load_torchvision("CIFAR10", "nowhere", train=True)
        Traceback (most recent call last):
        exitlens.errors.DataError: ...
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
