"""Tables: Parquet, Arrow, saved and hub data sets of Hugging Face ``datasets``, folders of images with metadata.

``datasets`` keeps the rows of every format in memory-mapped Arrow files, so that any row can be read in constant memory;
Parquet is written once as Arrow to its cache (``HF_DATASETS_CACHE``), which needs the disk space of the data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exitlens.data.files import list_files, stamp_files
from exitlens.data.lines import to_series
from exitlens.data.readers import EncodedImages, LazySequence, RowNames
from exitlens.data.rows import SEPARATOR, Columns, Kind, Rows, Source, label_rows
from exitlens.errors import DataError, ExitlensError, import_extra
from exitlens.modalities.arrays import open_regular
from exitlens.types.preprocessing import Preprocess

HUB = "hf:"
_ROWS = 1 << 14  # values that are read at once
_SERIES = 1 << 10  # lists that are read at once


def open_table(name: str, kind: str) -> Table:
    """Open a table of a format, by path or ``hf:NAME[:CONFIG]``; what was opened last is kept until its files change."""
    return _open(name, kind, () if kind == "hub" else stamp_files(list_files(Path(name))))


@lru_cache(maxsize=2)
def _open(name: str, kind: str, stamp: tuple[object, ...]) -> Table:
    package = import_extra("datasets", "datasets", "a table of samples")
    try:
        if kind == "hub":
            path, _, config = name.removeprefix(HUB).partition(":")
            data = package.load_dataset(path, config or None)
        elif kind == "saved":
            data = package.load_from_disk(name)
        elif Path(name).is_file():
            data = package.load_dataset(kind, data_files=name)["train"]
        else:
            data = package.load_dataset(kind, data_dir=name)
    except Exception as error:  # pyarrow, fsspec and the hub raise many kinds
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = f"{type(root).__name__}: {str(root).splitlines()[0] if str(root) else ''}"
        problem = f"cannot be read as {kind} ({reason}): its files are damaged, of another format, or a part has no rows"
        if kind == "hub" and isinstance(error, ConnectionError):
            fix = "save it where there is a network (datasets.load_dataset(...).save_to_disk(DIR)) and pass --data DIR"
            reason = f"the hub cannot be reached ({type(error).__name__})"
            problem = f"is not in the local cache, and {reason}. Fix: {fix}"
        elif kind == "hub":
            problem = f"cannot be loaded from the hub ({reason}). Fix: give hf:NAME or hf:NAME:CONFIG"
        raise DataError(f"data: {name} {problem}") from error
    parts = dict(data) if isinstance(data, dict) else {"": data}
    if not any(map(len, parts.values())):
        raise DataError(f"data: {name} has no rows")
    return Table(name, parts, package)


class Table(Source):
    """An open table; ``parts`` are its data sets by name, or one without a name."""

    def __init__(self, name: str, parts: Mapping[str, Any], package: Any) -> None:
        self._features = next(iter(parts.values())).features
        super().__init__(name, {column: classify(package, feature) for column, feature in self._features.items()})
        self.parts, self._package = parts, package

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Return labels, groups and contents of every part, or of all; contents are read when they are asked for."""
        if columns.split and len(self.parts) > 1:
            raise DataError(f"split_by: {self.name} has parts already ({', '.join(self.parts)}). Fix: leave it out")
        if joined:
            return {"": self._list_part(list(self.parts), columns)}
        return {part: self._list_part([part], columns) for part in self.parts}

    def _list_part(self, parts: Sequence[str], columns: Columns) -> Rows:
        data, first = [self.parts[part] for part in parts], columns.inputs[0]
        counts = [(f"{self.name}:{part}:" if part else f"{self.name}:", len(self.parts[part])) for part in parts]
        names, words = RowNames(counts), dict[str, list[str | None]]()
        for name in columns.words:
            named = [(part, _find_names(part.features[name])) for part in data]
            words[name] = [to_word(value, classes) for part, classes in named for value in _iterate_column(part, name)]
        label = "".join(columns.labels)
        rows = label_rows(names, columns, words, lambda: self._read_paths(data, first if columns.role == "image" else ""))
        if not rows.several and rows.numbers is None:
            classes = tuple(map(str, _find_names(self._features.get(label))))
            rows = rows._replace(classes=classes, several=self.kinds.get(label) in ("list", "words"))
        if columns.role == "image":
            root = Path(self.name) if Path(self.name).is_dir() else Path(self.name).parent
            return rows._replace(images=partial(TableImages, self._join(data, first), names, root))
        if columns.role == "text":
            return rows._replace(texts=TableTexts(self._join(data, first)))
        if columns.role == "features":
            vectors = np.stack([np.concatenate([self._to_floats(d, name) for d in data]) for name in columns.inputs], 1)
            return rows._replace(arrays=torch.from_numpy(vectors), features=columns.inputs)
        values = [to_series(value, repr(value)) for part in data for value in _iterate_column(part, first, _SERIES)]
        faults = {i: value for i, value in enumerate(values) if isinstance(value, str)}
        return rows._replace(series=[None if isinstance(value, str) else value for value in values], faults=faults)

    def _join(self, data: Sequence[Any], column: str) -> Any:
        """Return a column of several parts as one data set, with images as they are stored; nothing is read."""
        chosen = [part.select_columns([column]) for part in data]
        if isinstance(self._features[column], self._package.Image):
            chosen = [part.cast_column(column, self._package.Image(decode=False)) for part in chosen]
        try:
            return chosen[0] if len(chosen) == 1 else self._package.concatenate_datasets(chosen)
        except Exception as error:  # pyarrow raises many kinds
            raise DataError(f"data: {self.name}: its parts have {column!r} in different types ({error})") from error

    def _read_paths(self, data: Sequence[Any], column: str) -> list[str]:
        """Return file names of the images; raise a :class:`DataError` if they have none."""
        compute = import_extra("pyarrow.compute", "datasets", "a table of samples")
        paths: list[object] = []
        for part in data if column else ():
            values = part.data.column(column)
            has_path = "path" in [field.name for field in getattr(values.type, "fields", ())]
            paths += (compute.struct_field(values, "path") if has_path else values).to_pylist()
        if not paths or not all(isinstance(path, str) for path in paths):
            known = ", ".join(self.kinds)
            raise DataError(f"group_by: {self.name} has no file names for a regular expression, only columns: {known}")
        return paths  # type: ignore[return-value]

    def _to_floats(self, data: Any, column: str) -> Any:  # -> (N,) float32, NaN for nulls
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray(data.data.column(column).to_numpy(), dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError) as error:
            problem = f"data: {self.name}: expected numbers in column {column!r} ({error})"
            raise DataError(f"{problem}. Fix: name others by --columns") from error

    def hash(self) -> str:
        """Return SHA-256 over what decides the splits of a hub's data set: parts, columns, rows and class numbers."""
        facts: list[str] = []
        for part, data in self.parts.items():
            facts.append(f"{part} {len(data)} {data.features}")
            numbers = [name for name, kind in self.kinds.items() if kind in ("class", "integer")]
            facts += [str(data.data.column(name).to_pylist()) for name in numbers]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _iterate_column(data: Any, column: str, at_once: int = _ROWS) -> Iterator[Any]:
    """Yield the values of a column in constant memory."""
    for chunk in data.data.column(column).chunks:
        for at in range(0, len(chunk), at_once):
            yield from chunk.slice(at, at_once).to_pylist()


def to_word(value: object, names: Sequence[str] = ()) -> str | None:
    """Return a value as a word: a class's name, a whole number without a point, a joined list; ``None`` if missing."""
    if isinstance(value, list | tuple):
        words = [to_word(item, names) for item in value]
        return None if None in words else SEPARATOR.join(word or "" for word in words)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else None


def classify(package: Any, feature: Any) -> Kind:
    """Return what a column holds, by its feature; ``package`` is ``datasets``."""
    if isinstance(feature, package.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()):
        return "image"
    if isinstance(feature, package.ClassLabel):
        return "class"
    if (inner := _find_inner(feature)) is not None:
        innermost = _find_inner(inner) or inner  # a series may have a list for each channel
        if isinstance(innermost, package.Value) and str(innermost.dtype).startswith(("int", "uint", "float", "double")):
            return "list"
        return "words" if classify(package, inner) in ("class", "string") else "other"
    dtype = str(feature.dtype).removeprefix("large_") if isinstance(feature, package.Value) else ""
    kinds: dict[str, Kind] = {"int": "integer", "uint": "integer", "bool": "integer", "string": "string", "float": "float"}
    kinds |= {"double": "float", "decimal": "float", "binary": "bytes"}
    return next((kind for start, kind in kinds.items() if dtype.startswith(start)), "other")


def _find_inner(feature: Any) -> Any:
    """Return the feature of the items of a column of lists; ``None`` for other columns."""
    if isinstance(feature, list):
        return feature[0]
    inner = getattr(feature, "feature", None)
    return None if isinstance(inner, dict) else inner


def _find_names(feature: Any) -> Sequence[str]:
    return getattr(_find_inner(feature) or feature, "names", None) or ()


class TableTexts(LazySequence[str]):
    """The texts of a data set of one column, read when they are asked for; empty where there is none."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, index: int) -> str:
        """Return the text of a row."""
        (value,) = self._rows[index].values()
        return (to_word(value) or "").strip()

    def __iter__(self) -> Iterator[str]:
        (column,) = self._rows.column_names
        return ((to_word(value) or "").strip() for value in _iterate_column(self._rows, column))


class TableImages(EncodedImages):
    """The images of a data set of one column: encoded bytes, or paths of files relative to ``root``."""

    def __init__(self, rows: Any, names: Sequence[str], root: Path, preprocess: Preprocess) -> None:
        super().__init__(names, preprocess)
        self._rows, self._folder = rows, root

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes in the row, or those of its file."""
        try:
            (value,) = self._rows[index].values()
            path = value.get("path") if isinstance(value, dict) else value
            content = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(content, bytes):
                return content
            if isinstance(path, str):
                with open_regular(self._folder / path, self.name(index)) as file:
                    return file.read()
        except ExitlensError:
            raise
        except Exception as error:  # pyarrow and the system raise many kinds
            raise DataError(f"{self.name(index)}: cannot be read ({type(error).__name__}: {error})") from error
        raise DataError(f"{self.name(index)}: has no image")
