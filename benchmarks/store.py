"""Results of many runs in one long-format CSV: a row for every run, part of it, measure and exit.

A run is a tree: dictionaries of dictionaries, down to single values and lists of them. ``part`` names the way down to the last
dictionary, ``measure`` the key in it, and ``exit`` the position in a list: an exit, a point of a curve, or the median (0) and the
two ends of an interval. A finished run waits as a JSON file until it is folded into the CSV, so runs can be made side by side.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

Tree = dict[str, Any]
SEPARATOR = "|"
KEYS = ["run", "part", "measure", "exit"]


def flatten(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str, str]]:
    """(part, measure, exit, cell) of every value."""
    for key, value in tree.items():
        part, measure = SEPARATOR.join(path), str(key)
        if isinstance(value, dict) and value:
            yield from flatten(value, (*path, measure))
        elif isinstance(value, list | tuple) and value:
            yield from ((part, measure, str(i), write_cell(one)) for i, one in enumerate(value))
        else:
            yield part, measure, "", write_cell(value)


def grow(rows: Iterator[tuple[str, str, str, str]]) -> Tree:
    """The tree that :func:`flatten` made these rows of."""
    tree: Tree = {}
    for part, measure, position, cell in rows:
        node = tree
        for key in part.split(SEPARATOR) if part else ():
            node = node.setdefault(key, {})
        if position:
            node.setdefault(measure, []).append(read_cell(cell))
        else:
            node[measure] = read_cell(cell)
    return tree


def write_cell(value: object) -> str:
    """JSON, but text without quotes where nothing else reads like it; floats to their last digit."""
    if isinstance(value, list | tuple | dict) and value:
        raise ValueError(f"expected a single value, got {value!r}: give its entries names")
    if isinstance(value, str) and value and read_cell(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def read_cell(cell: str) -> Any:
    """What :func:`write_cell` wrote."""
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


@dataclass(frozen=True)
class Layout:
    """Columns for what a run's name says; the last part of the name has a column for every value that it takes.

    Attributes:
        keys: columns for all parts of the name but the last.
        split: the parts of a run's name.
        join: the way back.
    """

    keys: tuple[str, ...]
    split: Callable[[str], tuple[str, ...]]
    join: Callable[..., str]

    def widen(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A column for every value of the names' last part, such as the seed."""
        named = pd.DataFrame([self.split(name) for name in frame["run"]], columns=[*self.keys, "last"])
        keys = [*self.keys, *KEYS[1:]]
        whole = pd.concat([named, frame.drop(columns="run")], axis=1)
        ranks = {
            "of_name": whole.groupby(list(self.keys), sort=False).ngroup(),
            "of_measure": whole.groupby(keys[:-1], sort=False).ngroup(),
            "of_exit": pd.to_numeric(whole["exit"]),
        }
        order = whole.assign(**ranks).drop_duplicates(keys).sort_values(list(ranks), kind="stable")
        wide = whole.set_index([*keys, "last"])["value"].unstack(fill_value="")
        wide = wide.reindex(pd.MultiIndex.from_frame(order[keys]))
        return wide[sorted(wide.columns, key=int)].reset_index()

    def lengthen(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Back to a row for every run."""
        whole = frame.melt(id_vars=[*self.keys, *KEYS[1:]], var_name="last", value_name="value")
        whole = whole[whole["value"] != ""].reset_index(drop=True)
        names = [self.join(*parts) for parts in whole[[*self.keys, "last"]].itertuples(index=False)]
        return pd.concat([pd.Series(names, name="run", dtype=str), whole[[*KEYS[1:], "value"]]], axis=1)


@dataclass(frozen=True)
class Store:
    """All runs of one benchmark.

    Attributes:
        path: the CSV.
        runs: the folder in which finished runs wait to be folded in, each as NAME/measured.json.
        layout: the columns for a run's name; ``None``: one column, ``run``.
    """

    path: Path
    runs: Path
    layout: Layout | None = None

    def waiting(self, name: str) -> Path:
        """Where a finished run waits."""
        return self.runs / name / "measured.json"

    def __contains__(self, name: str) -> bool:
        return self.waiting(name).exists() or name in self.read()

    def find(self, name: str) -> Tree:
        """One run, folded in or not."""
        if self.waiting(name).exists():
            found: Tree = json.loads(self.waiting(name).read_text())
            return found
        return self.read()[name]

    def add(self, name: str, tree: Tree) -> None:
        """Keeps a finished run."""
        list(flatten(tree))  # what cannot be folded in fails here
        write_atomically(self.waiting(name), json.dumps(tree, indent=1) + "\n")

    def read(self) -> dict[str, Tree]:
        """All runs that are folded in, by name."""
        return _trees(self, self.path.stat().st_mtime_ns) if self.path.exists() else {}

    def frame(self) -> pd.DataFrame:
        """The long frame, all cells as text."""
        if not self.path.exists():
            return pd.DataFrame(columns=[*KEYS, "value"], dtype=str)
        frame = pd.read_csv(self.path, dtype=str, keep_default_na=False)
        return frame if self.layout is None else self.layout.lengthen(frame)

    def fold(self) -> list[str]:
        """Puts the runs that wait into the CSV, in place of older ones of the same name; their names."""
        self.runs.mkdir(parents=True, exist_ok=True)
        with (self.runs / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another command may be at it
            return self._fold()

    def _fold(self) -> list[str]:
        waiting = {path.parent: path for path in sorted(self.runs.rglob("measured.json"))}
        names = {path: folder.relative_to(self.runs).as_posix() for folder, path in waiting.items()}
        if not names:
            return []
        rows = [(name, *row) for path, name in names.items() for row in flatten(json.loads(path.read_text()))]
        new = pd.DataFrame(rows, columns=[*KEYS, "value"], dtype=str)
        old = self.frame()
        frame = pd.concat([old[~old["run"].isin(new["run"])], new], ignore_index=True)
        write_atomically(
            self.path, (frame if self.layout is None else self.layout.widen(frame)).to_csv(index=False, lineterminator="\n")
        )
        for path in names:
            path.unlink()
        return list(names.values())


@lru_cache(maxsize=8)
def _trees(store: Store, _changed: int) -> dict[str, Tree]:
    rows = store.frame()
    return {
        str(name): grow(zip(one["part"], one["measure"], one["exit"], one["value"], strict=True))
        for name, one in rows.groupby("run", sort=False)
    }


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


RESULTS = Path(__file__).parent / "results"
LOADING = Store(RESULTS / "loading.csv", Path("runs/loading"))
GUARANTEES = Store(RESULTS / "guarantees.csv", Path("runs/guarantees"))
PROCESSES = Store(RESULTS / "processes.csv", Path("runs/processes"))
