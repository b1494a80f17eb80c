"""Folders of images with a class for each pixel: masks of indices beside them, or outlines in COCO's format."""

from __future__ import annotations

import io
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exitlens.data.files import IMAGES, MASKS, OUTLINES, holds_masks, list_names, name_failures
from exitlens.data.readers import ImageFiles, pack_strings
from exitlens.data.sets import LazySet
from exitlens.data.workers import Decoded, Plan, decode_batches
from exitlens.errors import DataError, import_extra
from exitlens.modalities import IMAGE
from exitlens.modalities.arrays import open_regular
from exitlens.modalities.image import FORMATS, MAX_PIXELS, read_size
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import BACKGROUND, IGNORE

CLASSES = ("classes.txt", "classes.json")  # beside them
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_PEEKED = 20  # masks that are read to find out that white stands for a class


class Truth(ABC):
    """The classes of the pixels of N images, drawn when they are asked for."""

    @abstractmethod
    def name(self, image: str) -> str:
        """Return what errors call the mask of an image."""

    @abstractmethod
    def draw(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """Return the classes ``(H,W)`` ``uint8`` of an image of this size, or raise a :class:`DataError` that names them."""


class MaskFiles(Truth):
    """Pictures of indices, grey or with a palette, with the names of the images below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = index_stems(root, (name for name in list_names(root, IMAGE) if name.lower().endswith(LOSSLESS)))

    def name(self, image: str) -> str:
        """Return where the classes of an image stand."""
        stem = str(Path(image).with_suffix(""))
        return str(self._root / self._names.get(stem, f"{stem}.png"))

    def draw(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """Return the classes of an image's pixels, as :meth:`Truth.draw` says."""
        name = self.name(image)
        if str(Path(image).with_suffix("")) not in self._names:
            raise DataError(f"{name}: there is no such mask for {IMAGES}/{image} (of {', '.join(LOSSLESS)})")
        try:
            with open_regular(Path(name), name) as file:
                content = file.read()
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(f"{name}: {picture.width} x {picture.height} pixels is over the limit of {MAX_PIXELS:,}")
                mode, values = picture.mode, np.asarray(picture)
        except DataError:
            raise
        except Exception as error:  # Pillow raises many kinds for hostile files
            raise DataError(f"{name}: cannot be read as a mask ({type(error).__name__}: {error})") from error
        if values.ndim != 2 or values.dtype.kind not in ("b", "u", "i"):
            raise DataError(f"{name}: expected a mask of class indices, grey or with a palette, got colours ({mode})")
        if values.min() < 0 or values.max() > IGNORE:
            raise DataError(f"{name}: expected indices of at most {IGNORE}, got {values.min()} to {values.max()}")
        return values.astype(np.uint8)

    def check_white(self) -> None:
        """Raise :class:`DataError` if masks from all over have no indices but 0 and :data:`IGNORE`, which is white."""
        seen = set[int]()
        for image in islice(self._names, 0, None, 1 + len(self._names) // _PEEKED):
            try:
                seen |= set(np.unique(self.draw(image, (0, 0))).tolist())
            except DataError:
                continue  # which is told when it is read
        if seen == {0, IGNORE}:
            problem = f"its masks have the values 0 and {IGNORE} alone, and {IGNORE} means that a pixel has no class"
            raise DataError(f"data: {self._root}: {problem}. Fix: save 1 in place of {IGNORE} where the object is")


def index_stems(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return files by their names without suffix; raise :class:`DataError` for two of one name."""
    stems = dict[str, str]()
    for name in names:
        first = stems.setdefault(str(Path(name).with_suffix("")), name)
        if first != name:
            problem = f"{root} has {first} and {name}, and masks go by names without suffix"
            raise DataError(f"data: {problem}. Fix: rename or remove one of them")
    return stems


class Outlines(Truth):
    """Polygons and run lengths of a COCO file; of two that overlap the smaller lies above, crowds have no class."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path, self._coco = path, import_extra("pycocotools.mask", "coco", f"a file of outlines ({path})")
        try:
            values = _read_json(path)
            names = {entry["id"]: str(entry["name"]) for entry in values["categories"]}
            places = {entry["id"]: str(entry["file_name"]) for entry in values["images"]}
            self._sizes = {str(entry["file_name"]): (entry["height"], entry["width"]) for entry in values["images"]}
            self._shapes: dict[str, list[Mapping[str, Any]]] = {name: [] for name in self._sizes}
            for entry in values["annotations"]:
                label = classes.index(names[entry["category_id"]])
                self._shapes[places[entry["image_id"]]].append({**entry, "label": IGNORE if entry.get("iscrowd") else label})
        except (LookupError, TypeError, ValueError) as error:
            problem = f"expected COCO's images, annotations and categories ({type(error).__name__}: {error})"
            raise DataError(f"data: {path}: {problem}. Fix: check ids and categories ({', '.join(classes)})") from error

    def name(self, image: str) -> str:
        """Return where the classes of an image stand."""
        return f"{self._path}: {image}"

    def draw(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """Return the classes of an image's pixels, as :meth:`Truth.draw` says."""
        if image not in self._sizes:
            listed = next(iter(self._sizes), "none")
            raise DataError(f"{self.name(image)}: this image is not listed there; the first that is: {listed}")
        if self._sizes[image] != size:
            raise DataError(
                f"{self.name(image)}: expected {size[0]}x{size[1]} pixels, as the image has, got {self._sizes[image]}"
            )
        drawn = np.zeros(size, np.uint8)
        try:
            regions = [(self._fill(entry["segmentation"], size), entry["label"]) for entry in self._shapes[image]]
        except Exception as error:  # pycocotools raises many kinds
            raise DataError(f"{self.name(image)}: an outline cannot be read ({type(error).__name__}: {error})") from error
        for region, label in sorted(regions, key=lambda pair: -int(pair[0].sum())):
            drawn[region] = label
        return drawn

    def _fill(self, shape: Any, size: tuple[int, int]) -> np.ndarray:
        if isinstance(shape, list) or isinstance(shape["counts"], list):  # polygons, or run lengths as they are
            shape = self._coco.frPyObjects(shape, *size)
        shape = self._coco.merge(shape) if isinstance(shape, list) else shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about how pycocotools makes its array
            region: np.ndarray = self._coco.decode(shape).astype(bool)
        if region.shape != size:
            raise ValueError(f"it is of {region.shape[0]}x{region.shape[1]} pixels")
        return region


class MaskedImages(ImageFiles):
    """Image files with the classes of their pixels, which :meth:`read` gives as one more channel ``(C+1,H,W)``."""

    def __init__(self, root: Path, names: Iterable[str], preprocess: Preprocess, truth: Truth, classes: int) -> None:
        super().__init__(root, names, preprocess)
        self._truth, self._classes = truth, classes

    def read(self, index: int) -> Tensor:
        """Return the pixels of an image, and their classes, which take the image's new size from the nearest pixel."""
        pixels, labels = super().read(index), self.read_labels(index)
        height, width = self.shape[1:]
        nearest = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        return torch.cat([pixels, torch.from_numpy(np.array(nearest))[None]])

    def read_labels(self, index: int) -> np.ndarray:
        """Return the classes of the pixels of the image as it is stored, or raise a :class:`DataError` that names them."""
        image, name = self._names[index], self._truth.name(self._names[index])
        size = read_size(Path(self.name(index)))
        labels = self._truth.draw(image, size)
        if labels.shape != size:
            got, expected = ("x".join(map(str, shape)) for shape in (labels.shape, size))
            raise DataError(f"{name}: expected the {expected} pixels of its image, got {got}")
        odd = labels[(labels >= self._classes) & (labels != IGNORE)]
        if odd.size:
            known = f"indices in [0, {self._classes}), or {IGNORE} where a pixel has no class"
            raise DataError(f"{name}: expected {known}, got {odd.max()} among them")
        return labels

    def check_labels(self, index: int) -> None:
        """Raise a :class:`DataError` that names what is wrong with the classes of an image."""
        self.read_labels(index)


class MaskSet(LazySet):
    """Images and the classes of their pixels, read together; ``labels`` has only their shape ``(N,H,W)``.

    Examples:
        >>> data = xl.data.load_masks("scans", scenes.preprocess)
        >>> type(data).__name__, data.load().labels.shape
        ('MaskSet', torch.Size([2, 40, 40]))
    """

    reader: MaskedImages

    def decode(self, plan: Plan, workers: int = 0) -> Iterator[Decoded]:
        """Yield batches as :class:`LazySet` does, with the classes as a last channel."""
        channels, *size = self.shape
        return decode_batches(self.reader, plan, (channels + 1, *size), workers, dtype=self.dtype)

    def pair(self, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return decoded pixels and their classes ``(b,H,W)``."""
        return values[:, :-1], values[:, -1].clone()


def load_masks(
    folder: Path | str, preprocess: Preprocess, *, classes: Sequence[str] = (), skip_bad: bool = False
) -> MaskSet:
    """List ``folder/images/name.jpg`` with ``folder/masks/name.png``; both are read when they are asked for.

    A mask holds the index of each pixel's class (grey or with a palette), 255 where there is none. In place of masks,
    ``folder/annotations.json`` may have outlines in COCO's format (extra ``coco``).

    Args:
        folder: with ``images`` beside ``masks`` or ``annotations.json``.
        preprocess: how images become inputs; masks take the nearest pixel.
        classes: their names, by index; by default the lines of ``classes.txt`` (or a list in ``classes.json``) in the folder
            or the one above, and of outlines ``background`` and COCO's categories.
        skip_bad: leave out images that cannot be read, or whose mask is missing, of another size or has other indices.

    Examples:
        >>> data = xl.data.load_masks("scans", xl.data.Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3))
        >>> data.classes, data[0][1].shape
        (('background', 'square'), torch.Size([32, 32]))
    """
    root = Path(folder)
    images, outlines = root / IMAGES, root / OUTLINES
    if not holds_masks(root, splits=False):
        expected = f"{IMAGES}/name.jpg with {MASKS}/name.png, or with {OUTLINES}"
        raise DataError(f"data: {root}: expected {expected}. Fix: give a folder that has them")
    names = tuple(classes) or read_classes(root)
    if len(names) < 2:
        raise DataError(f"data: {root} has {len(names)} class(es) of pixels, need 2 or more. Fix: name background, too")
    files = list_names(images, IMAGE)
    if outlines.is_file():
        truth: Truth = Outlines(outlines, names)
    else:
        index_stems(images, files)
        truth = MaskFiles(root / MASKS)
        truth.check_white()
    reader = MaskedImages(images, pack_strings(files), preprocess, truth, len(names))
    labels = torch.empty(len(reader), *preprocess.size, dtype=torch.uint8, device="meta")
    return MaskSet(reader, labels, names, preprocess, skip_bad=skip_bad)


def choose_classes(root: Path, known: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a folder, or those that a network knows; raise :class:`DataError` if the folder lists others."""
    listed = _list_classes(root) if known else read_classes(root)
    if known and listed and listed != tuple(known):
        problem = f"its masks have the classes {', '.join(listed)}, the network {', '.join(known)}"
        raise DataError(f"data: {root}: {problem}. Fix: number them as the network does, in masks and list")
    return listed or tuple(known)


def read_classes(root: Path) -> tuple[str, ...]:
    """Return the names of the classes of pixels, by index, that stand in a folder or the one above."""
    if listed := _list_classes(root):
        return listed
    outlines = next((path for path in (root / OUTLINES, *sorted(root.glob(f"*/{OUTLINES}"))) if path.is_file()), None)
    if outlines is None:
        fix = f"write the names of the classes into {root / CLASSES[0]}, one a line, that of index 0 first"
        raise DataError(f"data: {root} does not say what the indices of its masks mean. Fix: {fix}")
    try:
        categories = sorted((entry["id"], str(entry["name"])) for entry in _read_json(outlines)["categories"])
    except (LookupError, TypeError) as error:
        raise DataError(f"data: {outlines}: it has no categories as COCO has. Fix: add them") from error
    return (BACKGROUND, *(name for _, name in categories if name != BACKGROUND))


def _list_classes(root: Path) -> tuple[str, ...]:
    """Return the names in a file of classes; none without such a file."""
    for path in (folder / name for folder in (root, root.parent) for name in CLASSES):
        if not path.is_file():
            continue
        if path.suffix == ".txt":
            with name_failures(path):
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
        values = _read_json(path)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise DataError(f"data: {path}: expected a list of names, the class of index 0 first. Fix: correct it")
        return tuple(values)
    return ()


def _read_json(path: Path) -> Any:
    with name_failures(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"data: {path}: damaged ({error}). Fix: write it again") from error
