"""Series, volumes and vectors without labels, as batches of a network's inputs, each with a name that stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from exitlens.data.arrays.files import SUFFIXES, ArrayFiles
from exitlens.data.arrays.raw import ArrayReading, RawPart, arrange_parts
from exitlens.data.arrays.sets import find_kind
from exitlens.data.arrays.tables import NumberTable, Wanted
from exitlens.data.arrays.ts import find_ts_files, read_ts
from exitlens.data.checks import check_bad
from exitlens.data.formats.columns import find_array_inputs
from exitlens.data.formats.detect import find_format
from exitlens.data.formats.groups import match_groups
from exitlens.data.formats.tables import open_table
from exitlens.data.loading.listing import list_names
from exitlens.data.loading.packed import PackedStrings
from exitlens.data.loading.readers import Reader
from exitlens.data.rows import peek_kinds
from exitlens.data.streams import DecodedStream
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES, VECTOR
from exitlens.modalities.series import list_columns
from exitlens.types import ArrayPreprocess, VectorPreprocess


class HeldArrays:
    """A reader of samples ``(N,*S)`` in memory; ``names`` are what errors call them."""

    def __init__(self, values: Tensor, names: Sequence[str]) -> None:
        self._values, self._names = values, names

    def __len__(self) -> int:
        return len(self._values)

    def name(self, index: int) -> str:
        """As given."""
        return self._names[index]

    def read(self, index: int) -> Tensor:
        """The sample."""
        return self._values[index]


class _Listed(NamedTuple):
    reader: Reader
    shape: tuple[int, ...]
    names: Sequence[str]
    groups: Sequence[str] | None
    faults: Sequence[str] = ()


def stream_arrays(
    preprocess: ArrayPreprocess,
    data: str,
    *,
    batch_size: int,
    columns: str = "",
    group_by: str = "",
    skip_bad: bool = False,
    workers: int | None = None,
    without: Collection[str] = (),
) -> DecodedStream:
    """Streams the samples of a source in batches.

    Args:
        preprocess: of the network that takes them.
        data: a file of one sample or a folder of them, a ``.ts`` file, or a table of which each row is one.
        batch_size: samples in a batch.
        columns: of tables: ``series=NAME`` or ``features=A|B``, and ``key=NAME``.
        group_by: a column, or a regular expression on the names of the samples.
        skip_bad: leave out what cannot be read.
        workers: processes that decode files.
        without: names of samples to leave out.

    Raises:
        DataError: data that cannot be read; InputError: words that this format has no use for.
    """
    found = _list_samples(preprocess, data, columns, group_by)
    bad = {i: f"{found.names[i]}: {fault}" for i, fault in enumerate(found.faults) if fault}
    check_bad(list(bad.values()), len(found.names), skip_bad, "rows")
    leave = set(without)
    rows = [i for i in range(len(found.names)) if i not in bad and found.names[i] not in leave]
    rest: dict[str, Any] = {"rows": rows, "groups": found.groups, "bad": list(bad.values())}
    return DecodedStream(
        found.names, preprocess, batch_size, skip_bad, workers, reader=found.reader, shape=found.shape, **rest
    )


def _list_samples(preprocess: ArrayPreprocess, data: str, columns: str, group_by: str) -> _Listed:
    path, kind = Path(data), find_kind(preprocess)
    if path.suffix.lower() == ".csv" and (kind is VECTOR or (kind is SERIES and _has_lists(path, columns))):
        return _list_table(NumberTable(path), preprocess, columns, group_by)
    held = find_format(data, columns, [group_by])
    if held == "series" and kind is SERIES:
        return _list_ts(path, preprocess, columns, group_by)
    tables = held in ("parquet", "arrow", "saved", "hub")
    if held is not None and tables and kind in (SERIES, VECTOR) and not (kind is SERIES and _is_file_of_one(path)):
        return _list_table(NumberTable(open_table(data, held)), preprocess, columns, group_by)
    if kind is VECTOR:
        raise DataError(f"data: {data} is no table of numbers: expected .csv, Parquet or Arrow, a row for each vector")
    return _list_files(path, preprocess, columns, group_by)


def _has_lists(path: Path, columns: str) -> bool:
    return bool(columns) or (path.is_file() and "list" in peek_kinds(path).values())


def _is_file_of_one(path: Path) -> bool:
    """Whether a Parquet file is one series: all its columns have numbers, or say when."""
    kinds = list_columns(path) if path.suffix.lower() == ".parquet" else {}
    return bool(kinds) and all(kinds.values())


def _list_files(path: Path, preprocess: ArrayPreprocess, columns: str, group_by: str) -> _Listed:
    kind = find_kind(preprocess)
    if columns:
        raise InputError(f"columns: {path} holds files of one {kind.name} each, without columns: leave them out")
    if not path.exists():
        raise DataError(f"data: no file or folder {path}: give {kind.given}")
    found = list_names(path, SUFFIXES[kind], kind.name) if path.is_dir() else [str(path)]
    names = PackedStrings(str(path / name) for name in found) if path.is_dir() else PackedStrings(found)
    reader = ArrayFiles(Path(), names, preprocess)
    return _Listed(reader, reader.shape, names, match_groups(group_by, found) if group_by else None)


def _list_ts(path: Path, preprocess: ArrayPreprocess, columns: str, group_by: str) -> _Listed:
    if columns:
        raise InputError(f"columns: {path} is a .ts file, without columns: leave them out")
    parts, names = {}, list[str]()
    for part, file in find_ts_files(path).items():
        found = read_ts(file, labelled=False)
        parts[part] = found.part
        names += [f"{file}:{line}" for line in found.lines]
    return _arrange(parts, path.name, names, preprocess, match_groups(group_by, names) if group_by else None)


def _list_table(table: NumberTable, preprocess: ArrayPreprocess, columns: str, group_by: str) -> _Listed:
    wanted: Literal["series", "features"] = "features" if isinstance(preprocess, VectorPreprocess) else "series"
    own = preprocess.names if isinstance(preprocess, VectorPreprocess) else ()
    chosen, key = find_array_inputs(table.kinds, columns, table.name, wanted, own, [group_by])
    if group_by:
        table.check_column(group_by, "group_by")
    series, features = (chosen[0], ()) if wanted == "series" else ("", chosen)
    found = table.read(Wanted(series, features, tuple(filter(None, (key, group_by)))))
    parts, names, groups = {}, list[str](), list[str | None]()
    for part, rows in found.items():
        start = f"{table.name}:{part}:" if part else f"{table.name}:"
        own_names = [f"{start}{line}" for line in rows.lines]
        names += [word or "" for word in rows.words[key]] if key else own_names
        groups += rows.words.get(group_by, ())
        parts[part] = RawPart(own_names.__getitem__, own_names, rows.series, rows.vectors, features, rows.faults)
    if key:
        _check_distinct(names, key)
    if None in groups:
        raise DataError(f"group_by: {table.name} has a row without {group_by!r}: {names[groups.index(None)]}")
    return _arrange(parts, table.name, names, preprocess, [group or "" for group in groups] if group_by else None)


def _check_distinct(names: Sequence[str], key: str) -> None:
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1 or not name:
        raise DataError(f"columns: the key {name!r} stands in {count} rows of {key!r}: name a column that tells rows apart")


def _arrange(
    parts: dict[str, RawPart], origin: str, names: list[str], preprocess: ArrayPreprocess, groups: list[str] | None
) -> _Listed:
    rows = arrange_parts(parts, origin, ArrayReading(known=preprocess)).rows.values()
    values = [one.arrays for one in rows if one.arrays is not None]
    faults = [fault for one in rows for fault in one.faults]
    whole = torch.cat(values)
    return _Listed(HeldArrays(whole, names), tuple(whole.shape[1:]), names, groups, faults)
