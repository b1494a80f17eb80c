"""Results of a study in one long-format CSV: a row for every cell, part of it, measure and position in a list.

What a cell measures is a tree: dictionaries of dictionaries, down to single values and lists of them. ``part`` names the way to
the last dictionary, ``measure`` the key in it, and ``index`` the position in a list: an exit, a point of a curve, or the median (0)
and the two ends of an interval. A number at the end of a cell's name has a column of its own, ``seed``.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

Tree = dict[str, Any]
Runs = Mapping[str, Tree]  # what each cell measured, by the cell's name
Row = tuple[str, str, str, str]  # part, measure, index, value
COLUMNS = ("condition", "seed", "part", "measure", "index", "value")
SEPARATOR = "|"
FOLDER = Path(__file__).parent / "results"


def flatten(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[Row]:
    for key, value in tree.items():
        part, measure = SEPARATOR.join(path), str(key)
        if isinstance(value, dict) and value:
            yield from flatten(value, (*path, measure))
        elif isinstance(value, list | tuple) and value:
            yield from ((part, measure, str(i), write_value(entry)) for i, entry in enumerate(value))
        else:
            yield part, measure, "", write_value(value)


def grow(rows: Iterable[Row]) -> Tree:
    tree: Tree = {}
    for part, measure, index, text in rows:
        node = tree
        for key in part.split(SEPARATOR) if part else ():
            node = node.setdefault(key, {})
        if index:
            node.setdefault(measure, []).append(read_value(text))
        else:
            node[measure] = read_value(text)
    return tree


def write_value(value: object) -> str:
    """Write JSON, with floats to their last digit, and text without quotes where nothing else reads like it."""
    if isinstance(value, list | tuple | dict) and value:
        raise ValueError(f"expected a single value, got {value!r}. Fix: use a dictionary that names its entries.")
    if isinstance(value, str) and value and read_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def split_name(cell: str) -> tuple[str, str]:
    """Split ``scenes/egt-0`` into the condition and the seed, which is empty for a name without a number at its end."""
    match = re.fullmatch(r"(.*)-(\d+)", cell)
    return (match[1], match[2]) if match else (cell, "")


def list_seeds(runs: Runs, condition: str) -> list[Tree]:
    """Return the runs of a condition that are there, by seed."""
    return [runs[name] for seed in range(100) if (name := f"{condition}-{seed}") in runs]


def read_results(path: Path) -> dict[str, Tree]:
    return {cell: grow(rows) for cell, rows in _read_rows(path, path.stat().st_mtime_ns).items()} if path.exists() else {}


@lru_cache(maxsize=32)
def _read_rows(path: Path, _changed: int) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    with path.open(newline="") as file:
        for condition, seed, *row in list(csv.reader(file))[1:]:
            rows.setdefault(f"{condition}-{seed}" if seed else condition, []).append(tuple(row))  # type: ignore[arg-type]
    return rows


def write_result(path: Path, cell: str, tree: Tree, order: Iterable[str] = ()) -> None:
    """Add or replace a cell, in the given order of cells. Other processes may write other cells at the same time."""
    new = list(flatten(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = (_read_rows(path, path.stat().st_mtime_ns) if path.exists() else {}) | {cell: new}
        ordered = {name: rows[name] for name in dict.fromkeys([*order, *rows]) if name in rows}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*split_name(name), *row) for name, content in ordered.items() for row in content)
        temporary = path.with_name(f"{path.name}.tmp")  # no reader ever sees half a file
        temporary.write_text(text.getvalue())
        temporary.replace(path)
