"""Files: list them without reading them, tell their versions apart, and read one sample from each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from exitlens.data.packed import pack_strings
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES, VOLUME, Modality
from exitlens.modalities.arrays import read_shape
from exitlens.modalities.series import SERIES_FILES, decode_series, describe_raw
from exitlens.modalities.volume import NIFTI_FILES, VOLUME_FILES, decode_volume
from exitlens.types.preprocessing import ArrayPreprocess, MelSpectrogram, SeriesPreprocess, VolumePreprocess

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES: Mapping[Modality, tuple[str, ...]] = {SERIES: SERIES_FILES, VOLUME: VOLUME_FILES}
_TRIED = 100  # files that may be bad before the search for a good one ends
_ENDS = 65536  # bytes at both ends of a file
T = TypeVar("T")


def list_names(folder: Path, suffixes: tuple[str, ...] = EXTENSIONS, kind: str = "image") -> list[str]:
    """Return names of files of a ``kind`` at any depth, relative to ``folder``, sorted part by part, without hidden ones."""
    with _name_failures(folder, "listed"):
        names = [name for name in _walk(str(folder), "", hidden=False) if name.lower().endswith(suffixes)]
    if not names:
        raise DataError(f"data: no {kind} files below {folder} (looked for {', '.join(suffixes)})")
    return names


def list_images(folder: Path) -> list[Path]:
    """Return image files at any depth below ``folder``, sorted; or ``folder`` alone if it is a file."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"data: no file or folder {folder}. Fix: give a folder of images")
    return [folder / name for name in list_names(folder)]


def list_folders(path: Path) -> list[Path]:
    """Return the subfolders that are not hidden, sorted."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_files(root: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Return files at any depth below ``root`` (or this one file) with one of these suffixes (default: all), sorted."""
    return [root] if root.is_file() else list(iterate_files(root, suffixes))


def iterate_files(root: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files that :func:`list_files` returns, without hidden ones and caches of ``datasets``, while listing."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if (not suffixes or name.lower().endswith(suffixes)) and not name.startswith((".", "cache-")):
                yield Path(folder, name)


def _walk(folder: str, prefix: str, hidden: bool) -> Iterator[str]:
    """Yield relative names of all files in order, without asking for properties; links to folders are not followed."""
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
        with _name_failures(path):
            stat = path.stat()
        stamps.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(stamps)


def hash_files(paths: Sequence[Path]) -> str:
    """Return SHA-256 over every file's name, its size, and the 64 KiB at both of its ends.

    That tells files with other rows (Parquet has all its offsets at the end), and takes milliseconds for a terabyte.
    """
    digest = hashlib.sha256()
    for path in paths:
        with _name_failures(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(_ENDS)
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                ends += file.read()
        digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape") + ends)
    return digest.hexdigest()[:16]


@contextmanager
def _name_failures(path: Path, action: str = "read") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"data: {path} cannot be {action} ({type(error).__name__}: {error.strerror})") from error


class ArrayFiles:
    """A reader of series or volumes in files with N names, relative to ``root``; the class of ``preprocess`` says which.

    Attributes:
        shape: of every sample; if ``preprocess`` leaves the length open, that of the first file that can be read.
    """

    def __init__(self, root: Path, names: Iterable[str], preprocess: ArrayPreprocess) -> None:
        self._root, self._names, self._preprocess = root, pack_strings(names), preprocess
        self._kind: Modality = SERIES if isinstance(preprocess, SeriesPreprocess) else VOLUME
        if isinstance(preprocess, VolumePreprocess):
            self.shape: tuple[int, ...] = (len(preprocess.mean), *preprocess.size)
        elif isinstance(preprocess, SeriesPreprocess) and preprocess.length:
            self.shape = (len(preprocess.mean), preprocess.length)
        else:
            paths = [root / name for name in self._names[:_TRIED]]
            self.shape = _try_first(paths, lambda path: tuple(self._kind.decode(path, preprocess).shape))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self._root / self._names[index])

    def read(self, index: int) -> Tensor:
        """Return a sample before it is normalised; a :class:`DataError` names it if it is bad or has another shape."""
        values = self._kind.decode(self._root / self._names[index], self._preprocess)
        if tuple(values.shape) != self.shape:
            raise DataError(
                f"{self.name(index)}: it has {values.shape[1]} steps, the first file {self.shape[1]}. Fix: make them alike, "
                "or train with --size STEPS (size=STEPS): it cuts longer ones and fills shorter ones with zeros, at the end"
            )
        return values


def _try_first(paths: Sequence[Path], read: Callable[[Path], T]) -> T:
    """Return what ``read`` gives of the first file that is not bad, or raise what it says of the first if all are."""
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
