"""Files: list them without reading them, tell their versions apart, and load folders of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from exitlens.data.readers import ImageFiles, NamedReader, PackedStrings, check_bad, find_shape, pack_strings
from exitlens.data.sets import ImageSet, LazySet, find_kind
from exitlens.data.splits import name_split
from exitlens.data.workers import decode_batches
from exitlens.errors import DataError, InputError, suggest
from exitlens.modalities import IMAGE, SERIES, VOLUME, Modality
from exitlens.modalities.arrays import read_shape
from exitlens.modalities.series import SERIES_FILES, decode_series, describe_raw
from exitlens.modalities.volume import NIFTI_FILES, VOLUME_FILES, decode_volume
from exitlens.types.preprocessing import ArrayPreprocess, MelSpectrogram, Preprocess, VolumePreprocess

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES: Mapping[Modality, tuple[str, ...]] = {IMAGE: EXTENSIONS, SERIES: SERIES_FILES, VOLUME: VOLUME_FILES}
IMAGES, MASKS, OUTLINES = "images", "masks", "annotations.json"  # in a folder, or in each of train, test and so on
_TRIED = 100  # files that may be bad before the search for a good one ends
_ENDS = 65536  # bytes at both ends of a file
T = TypeVar("T")


def holds_masks(root: Path, splits: bool = True) -> bool:
    """Return whether a folder, or (``splits``) one of its folders for splits, has images and their masks or outlines."""
    parts = [root, *(path for path in list_folders(root) if splits and name_split(path.name))]
    return any((part / IMAGES).is_dir() and ((part / MASKS).is_dir() or (part / OUTLINES).is_file()) for part in parts)


def list_names(folder: Path, kind: Modality) -> list[str]:
    """Return names of files of a kind at any depth, relative to ``folder``, sorted part by part, without hidden ones.

    Images are listed without the masks that stand beside them.
    """
    suffixes = SUFFIXES[kind]
    with name_failures(folder, "listed"):
        names = [name for name in _walk(str(folder), "", hidden=False) if name.lower().endswith(suffixes)]
    if not names:
        looked = f"no {kind.name} files below {folder} (looked for {', '.join(suffixes)})"
        raise DataError(f"data: {looked}. Fix: put some there, or remove the folder")
    if kind is not IMAGE or not any(MASKS in name for name in names) or not holds_masks(folder):
        return names
    images = [name for name in names if MASKS not in Path(name).parts[:-1]]
    if not images:
        raise DataError(f"data: {folder} has masks and no images. Fix: give {folder / MASKS} if they are what you mean")
    return images


def list_images(folder: Path) -> list[Path]:
    """Return image files at any depth below ``folder``, sorted; or ``folder`` itself if it is a file."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"data: no file or folder {folder}. Fix: give a folder of images")
    return [folder / name for name in list_names(folder, IMAGE)]


def list_folders(path: Path) -> list[Path]:
    """Return the subfolders that are not hidden, sorted; raise :class:`DataError` if there is no such folder."""
    if not path.is_dir():
        raise DataError(f"data: no folder {path}. Fix: give a folder with one subfolder of files per class")
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_files(root: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Return files at any depth below ``root`` (or this one file) with one of these suffixes (default: all), sorted."""
    return [root] if root.is_file() else list(iterate_files(root, suffixes))


def iterate_files(root: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files below ``root`` while listing them, without hidden ones and caches of ``datasets``."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if (not suffixes or name.lower().endswith(suffixes)) and not name.startswith((".", "cache-")):
                yield Path(folder, name)


def _walk(folder: str, prefix: str, hidden: bool) -> Iterator[str]:
    """Yield relative names of all files in order; links to folders are not followed."""
    with os.scandir(folder) as listing:
        entries = sorted((entry for entry in listing if hidden or entry.name[0] != "."), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", hidden)
        elif entry.is_file():
            yield prefix + entry.name


def hash_folder(root: Path) -> str:
    """Return SHA-256 over the sorted relative names of the files below ``root``."""
    names = sorted(_walk(str(root), "", hidden=True))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def stamp_files(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of every file: equal as long as nobody writes to them."""
    stamps = []
    for path in paths:
        with name_failures(path):
            stat = path.stat()
        stamps.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(stamps)


def hash_files(paths: Sequence[Path]) -> str:
    """Return SHA-256 over every file's name, size, and the 64 KiB at both ends, where Parquet has all its offsets."""
    digest = hashlib.sha256()
    for path in paths:
        with name_failures(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(_ENDS)
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                ends += file.read()
        digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape") + ends)
    return digest.hexdigest()[:16]


@contextmanager
def name_failures(path: Path, action: str = "read") -> Iterator[None]:
    """Turn errors of the system into a :class:`DataError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"data: {path} cannot be {action} ({type(error).__name__}: {error.strerror})") from error


class ArrayFiles(NamedReader):
    """A reader of series or volumes in files with N names, relative to ``root``; all have the shape of the first one."""

    def __init__(self, root: Path, names: Iterable[str], preprocess: ArrayPreprocess) -> None:
        super().__init__(pack_strings(names), root)
        self._kind, self._preprocess, self.shape = find_kind(preprocess), preprocess, find_shape(preprocess)
        if not self.shape:
            paths = [root / name for name in self._names[:_TRIED]]
            self.shape = _try_first(paths, lambda path: tuple(self._kind.decode(path, preprocess).shape))

    def read(self, index: int) -> Tensor:
        """Return a sample before it is normalised."""
        values = self._kind.decode(Path(self.name(index)), self._preprocess)
        if tuple(values.shape) != self.shape:
            raise DataError(
                f"{self.name(index)}: it has {values.shape[1]} steps, the first file {self.shape[1]}. Fix: make them alike, "
                "or train with --size STEPS (size=STEPS): it cuts longer ones and fills shorter ones with zeros, at the end"
            )
        return values


def _try_first(paths: Sequence[Path], read: Callable[[Path], T]) -> T:
    """Return the result of ``read`` for the first good file; if all are bad, raise the error about the first."""
    first: DataError | None = None
    for path in paths:
        try:
            return read(path)
        except DataError as error:
            first = first or error
    raise DataError(f"data: {first}" if first else "data: no files") from first


def find_folder_kind(root: Path) -> Modality:
    """Return what the files below a folder hold, by their suffixes; for ``.npy`` by the number of axes in the header."""
    suffixes = tuple(dict.fromkeys((*SERIES_FILES, *VOLUME_FILES)))
    for path in islice(iterate_files(root, suffixes), _TRIED):
        name = path.name.lower()
        if not name.endswith(".npy"):
            return VOLUME if name.endswith(NIFTI_FILES) else SERIES
        try:
            return VOLUME if len(read_shape(path, str(path))) > 2 else SERIES
        except DataError:  # a bad file tells nothing: the next one may
            continue
    raise DataError(f"data: {root} has no file that can be read as a series or a volume ({', '.join(suffixes)})")


def describe_folder(root: Path, kind: Modality, size: int, mel: MelSpectrogram | None) -> ArrayPreprocess:
    """Return the preprocessing for files like the first that can be read, with mean 0 and std 1 until they are measured."""

    def describe(path: Path) -> ArrayPreprocess:
        if kind is SERIES:
            raw = decode_series(path)
            if mel is not None and not raw.rate:
                raise InputError(f"mel: it is for sounds, {path} says no sampling rate. Fix: leave it out")
            return describe_raw(raw, size, mel)
        if mel is not None:
            raise InputError(f"mel: it is for sounds, {path} is a {kind.name}. Fix: leave it out")
        channels, *sides = decode_volume(path).shape
        depth, height, width = [size] * 3 if size else sides
        return VolumePreprocess((0.0,) * channels, (1.0,) * channels, (depth, height, width))

    return _try_first(list(islice(iterate_files(root, SUFFIXES[kind]), _TRIED)), describe)


def load_folder(
    folder: Path | str, preprocess: Preprocess | ArrayPreprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> LazySet:
    """List ``folder/class/name.png`` (torchvision's ImageFolder convention); files are read when they are asked for.

    Args:
        folder: one subfolder per class.
        preprocess: how samples become inputs; its class says whether the files are images, series or volumes.
        classes: the names to use, in label order; by default the subfolders, sorted.
        skip_bad: leave out files that cannot be read, and list them in ``bad`` of the set, instead of stopping at the first.

    Examples:
        >>> data = xl.data.load_folder("photos", xl.data.Preprocess((40, 40), (0.5,) * 3, (0.25,) * 3))
        >>> len(data), data.classes
        (4, ('cat', 'dog'))
        >>> scaling = xl.data.SeriesPreprocess(mean=(0.0, 0.0), std=(1.0, 1.0))
        >>> xl.data.load_folder("recordings", scaling).classes  # recordings/CLASS/name.npy
        ('idle', 'running')
    """
    root, kind = Path(folder), find_kind(preprocess, tuple(SUFFIXES))
    layout = f"folder/class/name{SUFFIXES[kind][0]}"
    present = [path.name for path in list_folders(root)]
    names = tuple(classes) or tuple(present)
    if len(names) < 2:
        raise DataError(f"data: {root} has {len(names)} class folder(s), need 2 or more. Fix: give a folder as in {layout}")
    unknown = [name for name in present if name not in names]
    if unknown:
        raise DataError(f"data: {root} has the class {unknown[0]!r}, the network does not.{suggest(unknown[0], names)}")
    if not present:
        raise DataError(f"data: {root} has no class folder ({', '.join(names[:3])}, ...): expected {layout}")
    files = {name: list_names(root / name, kind) for name in present}
    numbers, counts = [names.index(name) for name in files], [len(listed) for listed in files.values()]
    labels = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
    paths = PackedStrings(f"{name}/{file}" for name, listed in files.items() for file in listed)
    return LazySet(make_reader(root, paths, preprocess), labels, names, preprocess, skip_bad=skip_bad)


def make_reader(root: Path, names: Iterable[str], preprocess: Preprocess | ArrayPreprocess) -> ImageFiles | ArrayFiles:
    """Return a reader of image, series or volume files with these names, relative to ``root``."""
    if isinstance(preprocess, Preprocess):
        return ImageFiles(root, names, preprocess)
    return ArrayFiles(root, names, preprocess)


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
