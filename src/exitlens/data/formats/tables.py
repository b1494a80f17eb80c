"""Tables of images or texts: Parquet, Arrow, saved and hub data sets of Hugging Face ``datasets``, folders with metadata.

All of them are read through ``datasets``: whatever the format, rows then lie in memory-mapped Arrow files, so that any row
can be read at any time in constant memory. Parquet cannot be read that way (a row costs its whole row group), so
``datasets`` writes it once as Arrow files to its cache, which needs the disk space of the data (``HF_DATASETS_CACHE`` says
where).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from exitlens.data.checks import join_flags
from exitlens.data.formats.columns import Columns, Kind, find_columns
from exitlens.data.formats.detect import HUB, Format
from exitlens.data.formats.files import stamp_files
from exitlens.data.formats.groups import looks_like_pattern, match_groups
from exitlens.data.formats.labelled import Rows
from exitlens.data.formats.table_values import TableImages, classify, find_inner, to_word
from exitlens.data.loading.names import RowNames
from exitlens.errors import DataError, import_extra, suggest

_ROWS = 1 << 14  # values that are read at once


def open_table(name: str, kind: Format) -> Table:
    """Opens a table; what was opened last is kept until its files change.

    Args:
        name: ``hf:NAME`` or ``hf:NAME:CONFIG``, or a path.
        kind: its format, see :func:`~exitlens.data.formats.detect.find_format`.

    Raises:
        DataError: if it cannot be read; MissingExtraError: where ``datasets`` is not installed.
    """
    return _open(name, kind, () if kind == "hub" else stamp_files(Path(name)))


@lru_cache(maxsize=2)
def _open(name: str, kind: Format, stamp: tuple[object, ...]) -> Table:
    package = import_extra("datasets", "datasets", "a table of samples")
    try:
        found = _load(package, name, kind)
    except Exception as error:  # pyarrow, fsspec and the hub raise many kinds
        raise DataError(_explain(name, kind, error)) from error
    parts = dict(found) if isinstance(found, dict) else {"": found}
    if not any(map(len, parts.values())):
        raise DataError(f"data: {name} has no rows")
    return Table(name, parts, package)


def _load(package: Any, name: str, kind: Format) -> Any:
    if kind == "hub":
        path, _, config = name.removeprefix(HUB).partition(":")
        return package.load_dataset(path, config or None)
    if kind == "saved":
        return package.load_from_disk(name)
    where: dict[str, Any] = {"data_files": name} if Path(name).is_file() else {"data_dir": name}
    found = package.load_dataset(kind, **where)
    return found["train"] if Path(name).is_file() else found


def _explain(name: str, kind: Format, error: Exception) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = f"{type(root).__name__}: {str(root).splitlines()[0] if str(root) else ''}"
    if kind == "hub" and isinstance(error, ConnectionError):
        local = "save it where there is one (datasets.load_dataset(...).save_to_disk(DIR)) and pass --data DIR"
        return f"data: {name} is not in the local cache, and the hub cannot be reached ({type(error).__name__}): {local}"
    if kind == "hub":
        return f"data: {name} cannot be loaded from the hub ({said}): give hf:NAME or hf:NAME:CONFIG"
    return f"data: {name} cannot be read as {kind} ({said}): its files are damaged, of another format, or a part has no rows"


class Table:
    """An open table; see :func:`open_table`.

    Attributes:
        name: of the source.
        parts: its data sets by name; a single one has none.
        kinds: what each column holds.
    """

    def __init__(self, name: str, parts: Mapping[str, Any], package: Any) -> None:
        features = next(iter(parts.values())).features
        self.name, self.parts, self._package = name, parts, package
        self.kinds: dict[str, Kind] = {column: classify(package, feature) for column, feature in features.items()}

    def find_columns(self, given: str, reserved: Sequence[str] = ()) -> Columns:
        """The columns of images or texts and labels, see :func:`~exitlens.data.formats.columns.find_columns`."""
        return find_columns(self.kinds, given, self.name, reserved)

    def class_names(self, columns: Columns) -> tuple[str, ...]:
        """Of a label column that knows them; otherwise none."""
        if len(columns.labels) > 1:
            return columns.labels
        feature = next(iter(self.parts.values())).features[columns.label]
        return tuple(map(str, getattr(find_inner(feature) or feature, "names", ()) or ()))

    def gives_labels(self, columns: Columns) -> bool:
        """Whether the columns themselves say that a sample has any number of labels."""
        return len(columns.labels) > 1 or self.kinds[columns.label] in ("list", "words")

    def list_rows(self, given: str, group_by: str = "", split_by: str = "") -> dict[str, Rows]:
        """Labels, groups and contents of every part, by its name.

        Args:
            given: of ``--columns``.
            group_by: a column, or a regular expression on the images' file names.
            split_by: a column; the source may have one part only then.

        Raises:
            DataError: columns that are not there or unclear.
        """
        if split_by:
            self.check_column(split_by, "split_by")
            if len(self.parts) > 1:
                raise DataError(f"split_by: {self.name} has parts already ({', '.join(self.parts)}): leave it out")
        if group_by and not looks_like_pattern(group_by):
            self.check_column(group_by, "group_by")
        columns = self.find_columns(given, [split_by, group_by])
        return {part: self._list_part(part, columns, group_by, split_by) for part in self.parts}

    @property
    def root(self) -> Path:
        """What paths of images are relative to."""
        return Path(self.name) if Path(self.name).is_dir() else Path(self.name).parent

    def check_column(self, column: str, argument: str) -> None:
        """Raises a :class:`DataError` for a column that is not there."""
        if column not in self.kinds:
            known = ", ".join(self.kinds)
            raise DataError(
                f"{argument}: {self.name} has no column {column!r}; it has {known}.{suggest(column, self.kinds)}"
            )

    def _list_part(self, part: str, columns: Columns, group_by: str, split_by: str) -> Rows:
        data, origin = self.parts[part], f"{self.name}, {part} row" if part else f"{self.name}, row"
        groups: Sequence[str | None] | None = None
        if group_by in self.kinds:
            groups = self.read_words(data, group_by)
        elif group_by:
            groups = match_groups(group_by, self.read_paths(data, columns.image))
        raw = None if columns.text else self.select_encoded(data, columns.image)
        names = RowNames([(f"{origin} ", len(data))])
        return Rows(
            name=lambda i: names[i],
            labels=self._read_labels(data, columns, lambda i: names[i]),
            images=None if raw is None else lambda preprocess: TableImages(raw, names, preprocess, self.root),
            texts=self.read_words(data, columns.text) if columns.text else None,
            groups=groups,
            splits=self.read_words(data, split_by) if split_by else None,
        )

    def _read_labels(self, data: Any, columns: Columns, name: Callable[[int], str]) -> list[str | None]:
        if len(columns.labels) == 1:
            return self.read_words(data, columns.label)
        return join_flags({label: self.read_words(data, label) for label in columns.labels}, name)

    def join(self, column: str) -> Any:
        """A column of all parts, one after the other, with images as they are stored; nothing is read.

        Raises:
            DataError: parts whose columns have different types.
        """
        found = [self.select_encoded(data, column) for data in self.parts.values()]
        try:
            return found[0] if len(found) == 1 else self._package.concatenate_datasets(found)
        except Exception as error:  # pyarrow's
            raise DataError(f"data: {self.name}: its parts have {column!r} in different types ({error})") from error

    def select_encoded(self, data: Any, column: str) -> Any:
        """The one column of a part, with images as they are stored: not decoded."""
        chosen = data.select_columns([column])
        if isinstance(data.features[column], self._package.Image):
            chosen = chosen.cast_column(column, self._package.Image(decode=False))
        return chosen

    def read_words(self, data: Any, column: str) -> list[str | None]:
        """A column of a part as words, see :func:`to_word`."""
        return list(self.iterate_words(data, column))

    def iterate_words(self, data: Any, column: str) -> Iterator[str | None]:
        """As :meth:`read_words`, in constant memory."""
        feature = data.features[column]
        names = getattr(find_inner(feature) or feature, "names", None) or ()
        for chunk in data.data.column(column).chunks:
            for at in range(0, len(chunk), _ROWS):
                yield from (to_word(value, names) for value in chunk.slice(at, _ROWS).to_pylist())

    def read_paths(self, data: Any, column: str) -> list[str]:
        """File names of the images; a :class:`DataError` where they have none."""
        compute = import_extra("pyarrow.compute", "datasets", "a table of samples")
        values = data.data.column(column) if column else None
        if values is not None and "path" in [field.name for field in getattr(values.type, "fields", ())]:
            values = compute.struct_field(values, "path")
        found = [] if values is None else values.to_pylist()
        if not found or not all(isinstance(path, str) for path in found):
            raise DataError(
                f"group_by: {self.name} has no file names for a regular expression, only columns: {', '.join(self.kinds)}"
            )
        return found

    def hash(self) -> str:
        """SHA-256 over what decides the splits of a hub's data set: parts, columns, rows and class numbers."""
        facts: list[str] = []
        for part, data in self.parts.items():
            facts.append(f"{part} {len(data)} {data.features}")
            numbers = [name for name, kind in self.kinds.items() if kind in ("class", "integer")]
            facts += [str(data.data.column(name).to_pylist()) for name in numbers]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
