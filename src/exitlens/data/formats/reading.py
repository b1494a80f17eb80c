"""Labelled data from files, in whichever format: as sets by part, before they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from exitlens.data.arrays.sets import LazyArrays
from exitlens.data.checks import join_flags
from exitlens.data.folders import load_folder
from exitlens.data.formats.columns import parse_columns, split_labels
from exitlens.data.formats.detect import METADATA, Format, list_folders
from exitlens.data.formats.files import hash_files, list_files
from exitlens.data.formats.groups import match_groups, number_groups
from exitlens.data.formats.labelled import Parts, Rows, make_sets
from exitlens.data.formats.named_parts import find_split_tables, name_split
from exitlens.data.formats.shards import open_shards
from exitlens.data.formats.tables import open_table
from exitlens.data.formats.tars import find_shards
from exitlens.data.lazy import LazyImages
from exitlens.data.loading.listing import hash_folder
from exitlens.data.rows import TABLES, open_file, read_columns
from exitlens.data.splits import SPLITS
from exitlens.errors import DataError, InputError
from exitlens.types import Preprocess

Lazy = TypeVar("Lazy", LazyImages, LazyArrays)


class Reading(NamedTuple):
    """Which columns to read, what makes the groups and what says the splits; empty words: nothing was said.

    ``task``: ``multilabel``: words of labels have ``;`` between them; ``classes``: one class a sample; empty: as data say.
    """

    columns: str = ""
    group_by: str = ""
    split_by: str = ""
    task: str = ""

    def decide(self, found: bool, name: str) -> bool:
        """Whether a sample has any number of labels, as was said, or as the data do: ``found``."""
        if self.task == "classes" and found:
            raise InputError(
                f"task: {name} gives several labels a sample, the network one class: name one column of classes"
            )
        return found or self.task == "multilabel"


def read_parts(
    name: str, kind: Format, reading: Reading, preprocess: Preprocess, classes: Sequence[str] = (), skip_bad: bool = False
) -> Parts:
    """The sets of a source by part; images are decoded when they are asked for.

    Args:
        name: path, pattern or hub name.
        kind: its format, see :func:`~exitlens.data.formats.detect.find_format`.
        reading: columns, groups and splits.
        preprocess: of images.
        classes: of an existing network, in label order.
        skip_bad: leave out what cannot be read.

    Raises:
        DataError: data that cannot be read; InputError: words that this format has no use for.
    """
    if kind == "folder":
        read = partial(load_folder, preprocess=preprocess, skip_bad=skip_bad)
        return read_folder(Path(name), reading, lambda path, own: read(path, classes=own)[0], classes)
    how: dict[str, Any] = {"classes": classes, "skip_bad": skip_bad}
    if kind == "texts":
        rows, several = _read_texts(Path(name), reading, skip_bad)
        known = split_labels(parse_columns(reading.columns).get("label", ""))
        words = {label or "" for part in rows.values() for label in part.labels}
        known = known if len(known) > 1 else () if several else tuple(sorted(words))
        return make_sets(rows, name, preprocess, known=known, several=several, **how)
    if kind == "shards":
        shards = open_shards(name)
        rows, columns = shards.list_rows(*reading[:3], skip_bad=skip_bad), shards.find_columns(reading.columns, reading[1:3])
        how |= {"several": reading.decide(len(columns.labels) > 1, name)}
        how |= {"known": columns.labels if len(columns.labels) > 1 else ()}
        return make_sets(rows, name, preprocess, **how)._replace(columns=str(columns))
    table = open_table(name, kind)
    rows, columns = table.list_rows(*reading[:3]), table.find_columns(reading.columns, reading[1:3])
    how |= {"known": table.class_names(columns), "several": reading.decide(table.gives_labels(columns), name)}
    return make_sets(rows, name, preprocess, **how)._replace(columns=str(columns))


def _read_texts(path: Path, reading: Reading, skip_bad: bool) -> tuple[dict[str, Rows], bool]:
    """The rows of a file, or of files that are named by split, and whether a sample has any number of labels."""
    files = find_split_tables(path, TABLES) if path.is_dir() else {"": path}
    if path.is_dir() and reading.split_by:
        raise InputError(f"split_by: {path} has a file for each split ({', '.join(files)}): leave it out")
    found = {word: _read_text_file(file, reading, skip_bad) for word, file in files.items()}
    return {word: rows for word, (rows, _) in found.items()}, any(several for _, several in found.values())


def _read_text_file(path: Path, reading: Reading, skip_bad: bool) -> tuple[Rows, bool]:
    given = parse_columns(reading.columns)
    if "image" in given:
        raise InputError(f"columns: {path} holds texts: give text=NAME and label=NAME")
    text, labels = given.get("text", "text"), split_labels(given.get("label", "label"))
    extra = [column for column in (reading.group_by, reading.split_by) if column]
    loose = labels if reading.task == "multilabel" or len(labels) > 1 else ()
    columns = read_columns(path, tuple(dict.fromkeys((text, *labels, *extra))), skip_bad, labels=loose)
    values: dict[str, Sequence[str]] = {text: columns.texts, **columns.words}

    def name(i: int) -> str:
        return f"{path}, line {columns.lines[i]}"

    several = reading.decide(len(labels) > 1 or labels[0] in columns.listed, str(path))
    found = Rows(
        name=name,
        labels=values[labels[0]] if len(labels) == 1 else join_flags({one: values[one] for one in labels}, name),
        texts=columns.texts,
        groups=values.get(reading.group_by),
        splits=values.get(reading.split_by),
    )
    return found, several


def read_folder(
    root: Path, reading: Reading, load: Callable[[Path, tuple[str, ...]], Lazy], classes: Sequence[str]
) -> Parts:
    """The sets of a folder of class folders, or of folders ``train``, ``test`` and so on that hold them.

    Args:
        root: the folder.
        reading: groups, by a regular expression on file names; columns it has not.
        load: makes a set of one folder, for these classes.
        classes: of an existing network, in label order.

    Raises:
        InputError: where columns are asked for; DataError: what ``load`` raises.
    """
    if reading.columns or reading.split_by:
        raise InputError(f"columns, split_by: {root} is a folder of class folders, without columns: leave them out")
    if reading.task == "multilabel":
        raise InputError(
            f"task: {root} has one class for an image, its folder: for several labels give a table of the images"
        )
    folders = _find_split_folders(root)
    classes = tuple(classes) or tuple(path.name for path in list_folders(folders.get("train", root)))
    sets = {word: load(path, classes) for word, path in folders.items()}
    if not reading.group_by:
        return Parts(sets)
    starts = {word: len(str(path)) + 1 for word, path in folders.items()}
    groups = {
        word: match_groups(reading.group_by, [data.reader.name(i)[starts[word] :] for i in range(len(data))])
        for word, data in sets.items()
    }
    names = tuple(sorted({group for found in groups.values() for group in found}))
    for word, data in sets.items():
        data.groups = number_groups(groups[word], names).ids
    return Parts(sets, names)


def _find_split_folders(root: Path) -> dict[str, Path]:
    """The subfolders that are splits, by name; or the folder itself, where they are classes."""
    if not root.is_dir():
        raise DataError(f"data: no folder {root}: give a folder with one subfolder of images per class")
    folders = {path.name: path for path in list_folders(root)}
    splits = {word: path for word, path in folders.items() if name_split(word)}
    whole = len(splits) == len(folders) or set(SPLITS) <= folders.keys()
    return splits if whole and any(name_split(word) == "train" for word in splits) else {"": root}


def hash_source(name: str, kind: Format) -> str:
    """SHA-256 over what decides the splits, without reading images; a change in it would mix them."""
    path = Path(name)
    if kind == "texts" and path.is_dir():
        return hash_files(list(find_split_tables(path, TABLES).values()))
    if kind in ("texts", "numbers"):
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if kind in ("folder", "arrays"):
        return hash_folder(path)
    if kind == "hub":
        return open_table(name, kind).hash()
    if kind == "shards":
        return hash_files(find_shards(name))
    if kind == "imagefolder":  # its images are told by their names, as those of other folders are
        facts = hash_folder(path) + hash_files(list_files(path, METADATA))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]
    return hash_files(list_files(path))
