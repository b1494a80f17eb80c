"""Folders of files, with class folders (``class/name.png``) or without, and torchvision's data sets from a local root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitlens.data.checks import check_bad
from exitlens.data.files import EXTENSIONS, SUFFIXES, ArrayFiles, list_images, list_names
from exitlens.data.packed import PackedStrings
from exitlens.data.readers import ImageFiles
from exitlens.data.sets import ImageSet, LazySet
from exitlens.data.workers import decode_batches
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import SERIES, VOLUME
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess, SeriesPreprocess


def load_folder(
    folder: Path | str, preprocess: Preprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> LazySet:
    """List ``folder/class/name.png`` (torchvision's ImageFolder convention); images are read when they are asked for.

    Args:
        folder: one subfolder per class.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        classes: the names to use, in label order; by default the subfolders, sorted.
        skip_bad: leave out files that cannot be read, instead of stopping at the first; ``bad`` of the set lists them as it
            is read.

    Raises:
        DataError: no classes, one class, a folder that is no known class, or a class without an image.

    Examples:
        >>> data = xl.data.load_folder("photos", xl.data.Preprocess((40, 40), (0.5,) * 3, (0.25,) * 3))
        >>> len(data), data.classes
        (4, ('cat', 'dog'))
    """
    files = list_class_files(Path(folder), classes)
    reader = ImageFiles(Path(folder), files.names, preprocess)
    return LazySet(reader, files.labels, files.classes, preprocess, skip_bad=skip_bad)


def load_arrays(
    folder: Path | str, preprocess: ArrayPreprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> LazySet:
    """List ``folder/class/name.wav`` (or another suffix of series or volumes); files are read when they are asked for.

    Arguments and errors are those of :func:`load_folder`; the class of ``preprocess`` says what the files are.

    Examples:
        >>> scaling = xl.data.SeriesPreprocess(mean=(0.0, 0.0), std=(1.0, 1.0))
        >>> data = xl.data.load_arrays("recordings", scaling)  # recordings/CLASS/name.npy
        >>> len(data), data.classes
        (4, ('idle', 'running'))
    """
    kind = SERIES if isinstance(preprocess, SeriesPreprocess) else VOLUME
    if not isinstance(preprocess, kind.preprocess):
        raise InputError(f"preprocess: expected one of series or volumes, got {type(preprocess).__name__}")
    files = list_class_files(Path(folder), classes, SUFFIXES[kind], kind.name)
    reader = ArrayFiles(Path(folder), files.names, preprocess)
    return LazySet(reader, files.labels, files.classes, preprocess, skip_bad=skip_bad)


class ClassFiles(NamedTuple):
    """Files in class folders: their names relative to the root, labels ``(N,)`` and the classes' names."""

    names: PackedStrings
    labels: Tensor
    classes: tuple[str, ...]


def list_class_files(
    root: Path, classes: Sequence[str] = (), suffixes: tuple[str, ...] = EXTENSIONS, kind: str = "image"
) -> ClassFiles:
    """List ``root/class/name`` with one of the suffixes; arguments and errors as of :func:`load_folder`."""
    if not root.is_dir():
        raise DataError(f"data: no folder {root}. Fix: give a folder with one subfolder of {kind} files per class")
    layout = f"folder/class/name{suffixes[0]}"
    present = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = tuple(classes) or tuple(present)
    if len(names) < 2:
        raise DataError(f"data: {root} has {len(names)} class folder(s), need 2 or more: expected {layout}")
    unknown = [name for name in present if name not in names]
    if unknown:
        raise DataError(f"data: {root} has the class {unknown[0]!r}, the network does not.{suggest(unknown[0], names)}")
    if not present:
        raise DataError(f"data: {root} has no {kind} in a class folder ({', '.join(names[:3])}, ...): expected {layout}")
    files = {name: list_names(root / name, suffixes, kind) for name in present}
    numbers, counts = [names.index(name) for name in files], [len(listed) for listed in files.values()]
    labels = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
    return ClassFiles(PackedStrings(f"{name}/{file}" for name, listed in files.items() for file in listed), labels, names)


class UnlabelledImages(NamedTuple):
    """Images in memory as normalised ``inputs (N,C,H,W)``, their ``files``, and ``bad`` ones with the reason."""

    inputs: Tensor
    files: tuple[Path, ...]
    bad: tuple[str, ...]


def load_unlabelled(folder: Path | str, preprocess: Preprocess, *, skip_bad: bool = False) -> UnlabelledImages:
    """Read every image below ``folder``, whatever the subfolders, into memory.

    Examples:
        >>> images = xl.data.load_unlabelled("photos", xl.data.Preprocess((40, 40), (0.5,) * 3, (0.25,) * 3))
        >>> images.inputs.shape, images.bad
        (torch.Size([4, 3, 40, 40]), ())
    """
    files = list_images(Path(folder))
    reader = ImageFiles(Path(), map(str, files), preprocess)
    batch = next(decode_batches(reader, [range(len(files))], reader.shape))
    bad = tuple(reason for _, reason in batch.bad)
    check_bad(bad, len(files), skip_bad)
    return UnlabelledImages(preprocess.normalise(batch.values), tuple(files[i] for i in batch.good), bad)


def load_torchvision(name: str, root: Path | str, train: bool) -> ImageSet:
    """Load a torchvision data set by class name (``FashionMNIST``, ``CIFAR10``) from files that are there already.

    Raises:
        InputError: an unknown name; DataError: its files are not below ``root``.

    Examples:
        >>> xl.data.load_torchvision("CIFAR10", "nowhere", train=True)
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
        fix = f"put its files there first, e.g. torchvision.datasets.{name}(root, download=True) where there is a network"
        raise DataError(f"data: torchvision:{name} cannot be loaded from {root} ({error}). Fix: {fix}") from error
    pixels = torch.as_tensor(np.asarray(source.data))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(np.asarray(source.targets))
    classes = tuple(map(str, getattr(source, "classes", range(int(labels.max()) + 1))))
    return ImageSet(pixels.to(torch.uint8), labels, classes)
