"""Results are kept to the last digit, whatever they are, and folded in one run at a time."""

import json
import math

import pandas as pd
import pytest

from benchmarks.performance.runs import LAYOUT
from benchmarks.store import Store, flatten, grow, read_cell, write_cell

TREE = {
    "title": "joint, evidence heads",
    "loss": None,
    "tests": {"agreeing": {"accuracy": [0.1 + 0.2, 1e-17, 1.0], "samples": 6000}},
    "rows": {"exits, 50/30/0/20": {"ms": [2.0, 1.5, 2.5], "compiled": True}},
    "empty": {},
    "nothing": [],
    "version": "3.11",
    "thresholds": [0.5, None],
}


def test_a_tree_comes_back_as_it_was():
    assert json.dumps(grow(flatten(TREE))) == json.dumps(TREE)


@pytest.mark.parametrize("value", ["", "3.11", "null", "true", '"quoted"', "plain", "a,b\nc", 1, 1.0, None, False, math.inf])
def test_cells_keep_value_and_type(value):
    found = read_cell(write_cell(value))
    assert (found, type(found)) == (value, type(value))


def test_lists_of_dictionaries_need_names(tmp_path):
    with pytest.raises(ValueError, match="give its entries names"):
        Store(tmp_path / "x.csv", tmp_path).add("a", {"rows": [{"x": 1}]})


def test_runs_wait_until_they_are_folded_in(tmp_path):
    store = Store(tmp_path / "x.csv", tmp_path / "runs")
    assert store.read() == {}
    store.add("scenes/a", TREE)
    assert "scenes/a" in store
    assert store.find("scenes/a") == TREE
    assert store.read() == {}
    assert store.fold() == ["scenes/a"]
    assert store.read() == {"scenes/a": TREE}
    assert store.fold() == []
    assert not list(tmp_path.rglob("*.json"))


def test_a_run_that_is_made_again_takes_the_place_of_the_old_one(tmp_path):
    store = Store(tmp_path / "x.csv", tmp_path / "runs")
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        store.add(name, {"old" if value == 1 else "new": value})
        store.fold()
    assert store.read() == {"b": {"new": 2}, "a": {"new": 3}}


def test_a_layout_puts_the_last_part_of_names_into_columns(tmp_path):
    store = Store(tmp_path / "x.csv", tmp_path / "runs", LAYOUT)
    runs = {"small-2": {"ms": [1.0, 2.0]}, "small-1": {"ms": [3.0, 4.0, 5.0], "unit": "ms"}, "large-1": {"ms": [6.0]}}
    for name, tree in runs.items():
        store.add(name, tree)
        store.fold()
    frame = pd.read_csv(store.path, dtype=str, keep_default_na=False)
    assert list(frame.columns) == ["network", "part", "measure", "exit", "1", "2"]
    assert frame.iloc[0].tolist() == ["small", "", "ms", "0", "3.0", "1.0"]
    assert store.read() == runs
