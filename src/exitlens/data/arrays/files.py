"""Series and volumes in files of their own, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from exitlens.data.arrays.raw import ArrayReading
from exitlens.data.arrays.sets import LazyArrays
from exitlens.data.folders import list_class_files
from exitlens.data.loading.packed import pack_strings
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES, VOLUME, Modality
from exitlens.modalities.arrays import read_shape
from exitlens.modalities.series import SERIES_FILES, decode_series, describe_raw, read_series
from exitlens.modalities.volume import NIFTI_FILES, VOLUME_FILES, decode_volume, read_volume
from exitlens.types import ArrayPreprocess, SeriesPreprocess, VolumePreprocess

SUFFIXES: Mapping[Modality, tuple[str, ...]] = {SERIES: SERIES_FILES, VOLUME: VOLUME_FILES}
_READ: Mapping[Modality, Callable[[Path, Any, str], Tensor]] = {SERIES: read_series, VOLUME: read_volume}
_TRIED = 100  # files at the start that may be bad


class ArrayFiles:
    """A reader of series or volumes in files.

    Args:
        root: what the names are relative to.
        names: N of them.
        preprocess: channels, length, rate or size; its class says what they are.
        shape: of every sample; by default, where ``preprocess`` leaves the length open, that of the first that can be read.

    Raises:
        DataError: where the length is open and none of the first files can be read.
    """

    def __init__(
        self, root: Path, names: Iterable[str], preprocess: ArrayPreprocess, shape: tuple[int, ...] | None = None
    ) -> None:
        self._root, self._names, self._preprocess = root, pack_strings(names), preprocess
        self._kind = SERIES if isinstance(preprocess, SeriesPreprocess) else VOLUME
        self.shape = shape or self._find_shape()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._names[index])

    def read(self, index: int) -> Tensor:
        """The sample, not yet normalised; a :class:`DataError` that names it if it is bad or has another shape."""
        values = _READ[self._kind](self._root / self._names[index], self._preprocess, self.name(index))
        if tuple(values.shape) != self.shape:
            raise DataError(
                f"{self.name(index)}: it has {values.shape[1]} steps, the first file {self.shape[1]}: make them alike, or "
                "train with --size STEPS (size=STEPS), which cuts longer ones and fills shorter ones with zeros, at the end"
            )
        return values

    def _find_shape(self) -> tuple[int, ...]:
        own = self._preprocess
        if isinstance(own, VolumePreprocess):
            return (len(own.mean), *own.size)
        if isinstance(own, SeriesPreprocess) and own.length:
            return (len(own.mean), own.length)
        return _try_first([self._root / one for one in self._names[:_TRIED]], self._measure)

    def _measure(self, path: Path) -> tuple[int, ...]:
        return tuple(_READ[self._kind](path, self._preprocess, str(path)).shape)


T = TypeVar("T")


def _try_first(paths: Sequence[Path], read: Callable[[Path], T]) -> T:
    """What ``read`` gives of the first file that is not bad; raises what it says of the first one where all are."""
    first: DataError | None = None
    for path in paths:
        try:
            return read(path)
        except DataError as error:
            first = first or error
    raise DataError(f"data: {first}" if first else "data: no files") from first


def find_file_kind(path: Path) -> Modality | None:
    """What a file holds, by its suffix; of ``.npy`` by the number of axes in its header. ``None``: neither kind."""
    name = path.name.lower()
    if name.endswith(NIFTI_FILES):
        return VOLUME
    if path.suffix.lower() == ".npy":
        return VOLUME if len(read_shape(path, str(path))) > 2 else SERIES
    return SERIES if name.endswith(SERIES_FILES) else None


def describe_files(paths: Sequence[Path], kind: Modality, how: ArrayReading) -> ArrayPreprocess:
    """How files become inputs, before mean and standard deviation are known (0 and 1), by the first that can be read.

    Raises:
        DataError: where none of the first files can be read; InputError: a spectrogram of what is no sound.
    """
    return _try_first(paths[:_TRIED], lambda path: _describe(path, kind, how))


def _describe(path: Path, kind: Modality, how: ArrayReading) -> ArrayPreprocess:
    if kind is SERIES:
        raw = decode_series(path)
        if how.mel is not None and not raw.rate:
            raise InputError(f"mel: it is for sounds, {path} says no sampling rate: leave it out")
        return describe_raw(raw, how.size, how.mel)
    if how.mel is not None:
        raise InputError(f"mel: it is for sounds, {path} is a {kind.name}: leave it out")
    channels, *size = decode_volume(path).shape
    depth, height, width = [how.size] * 3 if how.size else size
    return VolumePreprocess((0.0,) * channels, (1.0,) * channels, (depth, height, width))


def load_arrays(
    folder: Path | str, preprocess: ArrayPreprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> LazyArrays:
    """Lists ``folder/class/name.wav`` (or another suffix of series or volumes); files are read when they are asked for.

    Args:
        folder: one subfolder per class.
        preprocess: how they become inputs; its class says what they are.
        classes: the names to use, in label order; by default the subfolders, sorted.
        skip_bad: leave out files that cannot be read and report them, instead of stopping at the first.

    Raises:
        DataError: as :func:`~exitlens.data.folders.load_folder`; InputError: for vectors, which are rows of tables.

    Examples:
        >>> scaling = xl.SeriesPreprocess(mean=(0.0, 0.0), std=(1.0, 1.0))
        >>> data = xl.load_arrays("recordings", scaling)  # recordings/CLASS/name.npy
        >>> len(data), data.classes
        (4, ('idle', 'running'))
    """
    kind = SERIES if isinstance(preprocess, SeriesPreprocess) else VOLUME
    if not isinstance(preprocess, kind.preprocess):
        raise InputError(f"preprocess: expected one of series or volumes, got {type(preprocess).__name__}")
    found = list_class_files(Path(folder), classes, SUFFIXES[kind], kind.name)
    reader = ArrayFiles(Path(folder), found.names, preprocess)
    return LazyArrays(reader, found.labels, found.classes, preprocess, reader.shape, skip_bad=skip_bad)


def list_first(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Some files below a folder with one of these suffixes, in the order of their names; hidden ones are left out."""
    found = (one for one in sorted(root.rglob("*")) if one.name.lower().endswith(suffixes) and one.is_file())
    shown = (one for one in found if not any(part.startswith(".") for part in one.relative_to(root).parts))
    return list(islice(shown, _TRIED))
