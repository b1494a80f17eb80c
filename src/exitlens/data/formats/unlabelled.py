"""Data without labels, in whichever format: every row with a name that stays the same from run to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from exitlens.data.checks import check_bad
from exitlens.data.formats.columns import KEY, ROLES, check_wanted, find_inputs, parse_columns
from exitlens.data.formats.detect import find_unlabelled_format
from exitlens.data.formats.groups import looks_like_pattern, match_groups
from exitlens.data.formats.shards import open_shards
from exitlens.data.formats.table_values import TableImages, to_word
from exitlens.data.formats.tables import Table, open_table
from exitlens.data.formats.tars import ShardImages
from exitlens.data.loading.listing import list_images, list_names
from exitlens.data.loading.names import RowNames
from exitlens.data.loading.packed import PackedStrings
from exitlens.data.loading.readers import EncodedImages, ImageFiles
from exitlens.data.rows import read_columns
from exitlens.errors import DataError, InputError
from exitlens.types import Preprocess

Wanted = Literal["image", "text"]


class Unlabelled(NamedTuple):
    """N rows of a source, all its parts one after the other.

    Attributes:
        names: of the rows: files, ``shard.tar/member.jpg``, ``table:row``, ``table:part:row``, ``texts.csv:line``, or keys.
        images: gives a reader of the images, or
        texts: the texts.
        good: the rows that have all they need, ascending; whether an image can be decoded is not known yet.
        groups: names of the groups, if there are any; empty for a row that is not good.
        bad: what is wrong with other rows and files.
    """

    names: Sequence[str]
    images: Callable[[Preprocess], EncodedImages] | None
    texts: Sequence[str] | None
    good: Sequence[int]
    groups: Sequence[str] | None = None
    bad: tuple[str, ...] = ()

    def leave_out(self, names: Collection[str]) -> Unlabelled:
        """The same without the rows of these names."""
        return self._replace(good=[i for i in self.good if self.names[i] not in names]) if names else self


def list_unlabelled(
    name: str, wanted: Wanted, columns: str = "", group_by: str = "", *, skip_bad: bool = False
) -> Unlabelled:
    """Lists the rows of a source; images are not read.

    Args:
        name: path, pattern or hub name.
        wanted: what the network takes.
        columns: ``image=NAME`` or ``text=NAME``, and ``key=NAME`` for the column that names the rows; by default they are
            found by type.
        group_by: a column, or a regular expression on the file names (of tables, those of the images; of shards, the
            samples' keys; of texts, the rows' names).
        skip_bad: leave out rows without text, group or key.

    Raises:
        DataError: data that cannot be read or are unclear; InputError: words that this format has no use for.
    """
    kind = find_unlabelled_format(name, columns, group_by)
    if kind == "shards":
        return _list_shards(name, wanted, columns, group_by, skip_bad)
    if kind in ("numbers", "series", "arrays"):
        raise InputError(f"data: {name} holds series, volumes or vectors, the network takes {wanted}s: give some of these")
    if kind not in (None, "folder", "texts"):
        return _list_table(open_table(name, kind), wanted, columns, group_by, skip_bad)
    if wanted == "image" and kind == "texts":
        raise InputError(f"data: {name} holds texts, the network takes images: give a folder of images, a table or shards")
    if wanted == "text":
        return _list_texts(Path(name), columns, group_by, skip_bad)
    if kind is None and not Path(name).exists():
        raise DataError(f"data: no file or folder {name}: give a folder of images, Parquet, a saved data set or tar shards")
    return _list_folder(Path(name), columns, group_by)


def _list_folder(path: Path, columns: str, group_by: str) -> Unlabelled:
    if columns:
        raise InputError(f"columns: {path} holds images, without columns: leave them out")
    found = list_names(path) if path.is_dir() else [str(one) for one in list_images(path)]
    names = PackedStrings(str(path / name) for name in found) if path.is_dir() else PackedStrings(found)
    groups = match_groups(group_by, found) if group_by else None
    return Unlabelled(names, partial(ImageFiles, Path(), names), None, range(len(names)), groups)


def _list_texts(path: Path, columns: str, group_by: str, skip_bad: bool) -> Unlabelled:
    given = parse_columns(columns, (*ROLES, KEY))
    check_wanted(given, "text")
    column = "" if looks_like_pattern(group_by) else group_by
    keys = [given.get("text", "text"), *filter(None, (given.get(KEY, ""), column))]
    bad: list[str] = []
    rows = read_columns(path, tuple(dict.fromkeys(keys)), skip_bad, bad)
    values: dict[str, Sequence[str]] = {keys[0]: rows.texts, **rows.words}
    names = PackedStrings(f"{path}:{line}" for line in rows.lines)
    if KEY in given:
        _check_distinct(values[given[KEY]], given[KEY])
        names = PackedStrings(values[given[KEY]])
    groups = values[column] if column else match_groups(group_by, names) if group_by else None
    return Unlabelled(names, None, rows.texts, range(len(names)), groups, tuple(bad))


def _list_shards(name: str, wanted: Wanted, columns: str, group_by: str, skip_bad: bool) -> Unlabelled:
    shards = open_shards(name)
    if not shards.kinds:
        shards.index(frozenset(), skip_bad=False)  # says what is wrong with them
    column, key = find_inputs(shards.kinds, columns, name, wanted, [group_by])
    if group_by and group_by not in shards.kinds and not looks_like_pattern(group_by):
        shards.refuse("group_by", group_by)
    index = shards.index(frozenset({column, key, group_by} & shards.kinds.keys()), skip_bad)
    members, places = index.members, index.places
    names: Sequence[str] = PackedStrings(f"{shards.paths[places[i, 0]]}/{member}" for i, member in enumerate(members))
    groups: Sequence[str | None] | None = index.values.get(group_by)
    if group_by and groups is None:
        groups = match_groups(group_by, index.keys)
    texts = index.values[column] if wanted == "text" else None
    keys = index.values[key] if key else None
    checked = _check_rows(names, {"text": texts, "group": groups, KEY: keys}, skip_bad)
    return Unlabelled(
        names if keys is None else _take_keys(keys, checked.good, key),
        None if wanted == "text" else partial(ShardImages, shards.paths, places, members),
        None if texts is None else [(text or "").strip() for text in texts],
        checked.good,
        None if groups is None else [group or "" for group in groups],
        (*index.bad, *checked.bad),
    )


def _list_table(table: Table, wanted: Wanted, columns: str, group_by: str, skip_bad: bool) -> Unlabelled:
    if group_by and not looks_like_pattern(group_by):
        table.check_column(group_by, "group_by")
    column, key = find_inputs(table.kinds, columns, table.name, wanted, [group_by])
    counts = [(f"{table.name}:{part}:" if part else f"{table.name}:", len(data)) for part, data in table.parts.items()]
    names: Sequence[str] = RowNames(counts)
    groups: Sequence[str | None] | None = None
    if group_by in table.kinds:
        groups = [word for data in table.parts.values() for word in table.read_words(data, group_by)]
    elif group_by:
        image = column if wanted == "image" else ""
        groups = match_groups(group_by, [path for data in table.parts.values() for path in table.read_paths(data, image)])
    keys = [word for data in table.parts.values() for word in table.read_words(data, key)] if key else None
    words = (word for data in table.parts.values() for word in table.iterate_words(data, column))
    checked = _check_rows(names, {"text": words if wanted == "text" else None, "group": groups, KEY: keys}, skip_bad)
    rows = table.join(column)
    return Unlabelled(
        names if keys is None else _take_keys(keys, checked.good, key),
        None if wanted == "text" else partial(_read_table, rows, names, table.root),
        TableTexts(rows) if wanted == "text" else None,
        checked.good,
        None if groups is None else [group or "" for group in groups],
        checked.bad,
    )


def _read_table(rows: Any, names: Sequence[str], root: Path, preprocess: Preprocess) -> TableImages:
    return TableImages(rows, names, preprocess, root)


class TableTexts(Sequence[str]):
    """The texts of a table's column, read when they are asked for.

    Args:
        rows: a data set of one column.
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        (value,) = self._rows[range(len(self))[index]].values()
        return (to_word(value) or "").strip()


class _Checked(NamedTuple):
    good: Sequence[int]
    bad: tuple[str, ...]


def _check_rows(names: Sequence[str], needed: dict[str, Iterable[str | None] | None], skip_bad: bool) -> _Checked:
    """The rows in which nothing that is needed is missing; raises a :class:`DataError` for others, unless skipped."""
    is_good, bad = np.ones(len(names), dtype=bool), list[str]()
    for what, values in needed.items():
        for i, value in enumerate(values or ()):
            if (value is None or not value.strip()) and is_good[i]:
                is_good[i] = False
                bad.append(f"{names[i]}: no {what}")
    check_bad(bad, len(names), skip_bad, "rows")
    return _Checked(range(len(names)) if not bad else is_good.nonzero()[0].tolist(), tuple(bad))


def _take_keys(keys: Sequence[str | None], good: Sequence[int], column: str) -> PackedStrings:
    """Keys as names; raises a :class:`DataError` where two rows have one."""
    found = [(key or "").strip() for key in keys]
    _check_distinct([found[i] for i in good], column)
    return PackedStrings(found)


def _check_distinct(keys: Sequence[str], column: str) -> None:
    if len(set(keys)) < len(keys):
        (key, count), *_ = Counter(keys).most_common(1)
        raise DataError(
            f"columns: the key {key!r} stands in {count} rows of {column!r}: name a column that tells rows apart"
        )
