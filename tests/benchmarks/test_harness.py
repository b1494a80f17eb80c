"""The harness: cells are kept as they end and not measured again, promises are checked, and pages follow from results."""

import math
import re
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import (
    ROOT,
    STUDIES,
    Promise,
    Study,
    bootstrap_error,
    interval,
    promise_table,
    run_cells,
    share_error,
)
from benchmarks.results import COLUMNS, flatten, grow, read_results, read_value, split_name, write_result, write_value

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
PROMISE = Promise("a", "what", 1.0, ">=", 0.5, (0.6, 1.4))


def test_a_tree_comes_back_as_it_was():
    assert grow(flatten(TREE)) == TREE


@pytest.mark.parametrize("value", ["", "3.11", "null", "true", '"quoted"', "plain", "a,b\nc", 1, 1.0, None, False, math.inf])
def test_values_keep_their_type(value):
    text = read_value(write_value(value))
    assert (text, type(text)) == (value, type(value))


def test_lists_of_dictionaries_need_names():
    with pytest.raises(ValueError, match="Fix: use a dictionary"):
        list(flatten({"rows": [{"x": 1}]}))


@pytest.mark.parametrize(
    ("cell", "parts"),
    [("scenes/egt-0", ("scenes/egt", "0")), ("resnet50-2", ("resnet50", "2")), ("torch-2.11", ("torch-2.11", ""))],
)
def test_the_number_at_the_end_of_a_name_is_its_seed(cell, parts):
    assert split_name(cell) == parts


def test_cells_stand_in_the_given_order_and_a_new_result_replaces_the_old_one(tmp_path):
    path = tmp_path / "x.csv"
    assert read_results(path) == {}
    for cell, tree in (("b-0", {"x": 1}), ("a-0", TREE), ("b-0", {"x": 2})):
        write_result(path, cell, tree, ["a-0", "b-0"])
    assert list(read_results(path).items()) == [("a-0", TREE), ("b-0", {"x": 2})]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert path.read_text().splitlines()[-1] == "b,0,,x,,2"


def measure(value, log=None):
    """A job: writes down that it ran."""
    if log:
        log.with_name(f"{log.name}-{time.time_ns()}").touch()
    return {"half": 12 / value}


def make_study(folder, **changes):
    cells = {name: partial(measure, value, folder / f"ran-{name}") for name, value in (("a-0", 4), ("b-0", 0), ("b-1", 6))}
    study = {
        "name": "x",
        "cells": lambda quick: cells,
        "promises": lambda runs: [Promise("x|a", "a", len(runs), ">=", 2, exact=True)],
    }
    return Study(**{**study, **changes})


def test_cells_come_seed_by_seed():
    cells = harness.list_by_seed(max, {"a/b": 2, "c/d": 1})
    assert {name: job.args for name, job in cells.items()} == {
        "a/b-0": ("a", "b", 0),
        "c/d-0": ("c", "d", 0),
        "a/b-1": ("a", "b", 1),
    }
    assert list(cells) == ["a/b-0", "c/d-0", "a/b-1"]


@pytest.mark.slow
def test_a_run_goes_on_after_a_failure_and_repeats_nothing(tmp_path, capsys):
    study = make_study(tmp_path)
    assert run_cells(study, ["a-*"], quick=True, folder=tmp_path) == []
    assert '{"half": 3.0}' in capsys.readouterr().out
    assert not (tmp_path / "x.csv").exists()  # quick runs are shown and not kept
    assert run_cells(study, folder=tmp_path) == ["b-0"]
    assert "b-0 failed: ZeroDivisionError" in capsys.readouterr().out
    assert read_results(tmp_path / "x.csv") == {"a-0": {"half": 3}, "b-1": {"half": 2}}
    repaired = make_study(tmp_path, cells=lambda quick: {**study.cells(quick), "b-0": partial(measure, 3)})
    assert run_cells(repaired, ["b-*"], folder=tmp_path) == []
    assert "1 of 2 cells are there already" in capsys.readouterr().out
    assert list(read_results(tmp_path / "x.csv")) == ["a-0", "b-0", "b-1"]
    assert len(list(tmp_path.glob("ran-b-1-*"))) == 1
    assert run_cells(repaired, ["a-0"], folder=tmp_path, again=True) == []
    assert len(list(tmp_path.glob("ran-a-0-*"))) == 3


def test_the_first_table_says_which_cells_are_missing(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- t: by x -->\n<!-- end of t -->\n")
    monkeypatch.setattr(harness, "list_pages", lambda: [page])
    monkeypatch.setattr(Study, "read", lambda self: {"a-0": {"half": 3}})
    assert make_study(tmp_path, tables={"t": lambda runs: [str(len(runs))]}).write_pages() == [page]
    assert "**Not complete**: 1 of 3 runs are there; `python -m benchmarks x run` goes on.\n\n1\n" in page.read_text()


def test_a_miss_without_a_reason_fails(tmp_path, capsys, monkeypatch):
    study = make_study(tmp_path)
    assert not harness.check([study], tmp_path)  # no results at all
    write_result(tmp_path / "x.csv", "a-0", {"half": 3})
    assert not harness.check([study], tmp_path)
    assert "MISSED    a" in capsys.readouterr().out
    monkeypatch.setattr(harness, "read_known_misses", lambda: {"x|*": "for this"})
    assert harness.check([study], tmp_path)
    output = capsys.readouterr().out
    assert "known miss x|*: for this" in output
    assert output.endswith("x: 0 kept, 0 undecided, 1 missed\nall: 0 kept, 0 undecided, 1 missed\n")
    write_result(tmp_path / "x.csv", "b-0", {"half": 3})
    monkeypatch.setattr(harness, "STUDIES", ("x",))
    assert harness.check([study], tmp_path)
    assert "not missed any more, take it off known_misses.json: x|*" in capsys.readouterr().out


def test_the_committed_figures_keep_the_promises_or_say_why_not(capsys):
    assert harness.main(["all", "check"]) == 0
    output = capsys.readouterr().out
    assert "not missed any more" not in output
    *_, total = output.splitlines()
    assert re.fullmatch(r"all: \d+ kept, \d+ undecided, \d+ missed", total)
    page = (ROOT / "docs" / "measured" / "index.md").read_text()
    assert "| " + " | ".join(["all", *re.findall(r"\d+", total)]) + " |" in page, "python -m benchmarks all page"
    assert all(len(reason) > 40 for reason in harness.read_known_misses().values())


@pytest.mark.parametrize("name", STUDIES)
def test_committed_pages_are_made_from_committed_results(name, tmp_path, monkeypatch):
    study, copies = harness.load_study(name), {}
    names = [f"<!-- {marker}: " for marker in study.tables]
    for path in harness.list_pages():
        if any(marker in path.read_text() for marker in names):
            copies[tmp_path / str(len(copies))] = path
    for copy, path in copies.items():
        copy.write_text(path.read_text())
    monkeypatch.setattr(harness, "list_pages", lambda: list(copies))
    assert {*replace(study, finish=lambda runs: None).write_pages()} == {*copies}
    assert bool(copies) == bool(study.tables)
    for copy, path in copies.items():
        assert copy.read_text() == path.read_text(), f"python -m benchmarks {name} page"
    assert study.cells(True)


@pytest.mark.parametrize(
    ("sense", "ends", "state"),
    [
        (">=", (0.5, 0.9), "kept"), (">=", (0.4, 0.6), "undecided"), (">=", (0.1, 0.5), "undecided"), (">=", (0.1, 0.4), "missed"),
        ("<=", (0.1, 0.5), "kept"), ("<=", (0.4, 0.6), "undecided"), ("<=", (0.6, 0.9), "missed"), (">=", None, "undecided"),
    ],
)  # fmt: skip
def test_the_whole_interval_decides(sense, ends, state):
    assert Promise("a", "what", 0.5, sense, 0.5, ends).state == state


def test_exact_figures_are_kept_or_missed():
    states = [Promise("a", "what", count, "<=", 0, exact=True).state for count in (0, 1)]
    assert states == ["kept", "missed"]
    assert str(PROMISE).split() == ["kept", "what", "1", "±", "0.4", ">=", "0.5"]
    assert Promise("a", "what", 0.5, ">=", 0, (0.4, 0.9)).figure == "0.5 (0.4 to 0.9)"
    assert [Promise("a", "what", 2, ">=", 0, exact=exact).figure for exact in (True, False)] == ["2", "2 (no interval)"]


def test_reasons_are_those_of_the_first_pattern_that_matches(monkeypatch):
    monkeypatch.setattr(harness, "read_known_misses", lambda: {"a*": "first", "*": "second"})
    known = [PROMISE, *(Promise(key, "what", 0.0, ">=", 1, exact=True) for key in ("ab", "b"))]
    assert [promise.reason for promise in known] == ["", "first", "second"]
    assert Promise("a", "what", 0.0, ">=", 1).reason == ""  # undecided
    assert str(known[1]).startswith("missed ")
    lines = promise_table([PROMISE, known[2], Promise("b", "what", 0.0, ">=", 1)])
    rows = ["| what | 1 ± 0.4 | >= 0.5 | kept |", "| what | 0 | >= 1 | missed |"]
    assert lines[2:] == [*rows, "| what | 0 (no interval) | >= 1 | undecided |", "", "- second"]
    assert promise_table([]) == []
    assert harness.join_means([[None, 0.9, 1.0], [None, 0.7, None]], 1, 100) == "none / 80.0 / 100.0"


def test_intervals_are_those_of_student():
    """For 1, 2, 3 the standard error is 1 / sqrt(3), and t at 2 degrees of freedom is 4.303."""
    half = 4.3027 / 3**0.5
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(half, rel=1e-4))
    assert interval([1.0]) == (1.0, math.inf)
    assert Promise.of_mean("k", "w", [1.0, 2.0, 3.0], ">=", 0).ends == pytest.approx((2 - half, 2 + half), rel=1e-3)
    wider = math.hypot(half, 1.96 * 3)
    assert Promise.of_mean("k", "w", [1.0, 2.0, 3.0], ">=", 0, error=3.0).ends == pytest.approx(
        (2 - wider, 2 + wider), rel=1e-3
    )
    assert Promise.of_mean("k", "w", [1.0], ">=", 0, error=3.0).ends is None


def test_points_count_the_test_samples_though_seeds_agree():
    """40 of 46 and 42 of 46 right are, with two more of either kind, shares of 0.84 and 0.88 in 50."""
    assert share_error([40 / 46] * 2, 46) == pytest.approx((0.84 * 0.16 / 50) ** 0.5)
    assert share_error([1.1], 46) == share_error([1.0], 46) > 0
    promise = Promise.of_points("k", "w", [42 / 46] * 2, [40 / 46] * 2, 46, ">=", 0)
    half = 196 * (0.84 * 0.16 / 50 + 0.88 * 0.12 / 50) ** 0.5
    assert promise.ends == pytest.approx((200 / 46 - half, 200 / 46 + half))


def test_intervals_of_shares_and_medians():
    """Wilson's interval of 10 in 100 is 0.0552 to 0.1744 (Agresti & Coull 1998); quartiles 1 apart in 25 rounds: ± 1.57 / 5."""
    assert Promise.of_share("k", "w", 0.1, 100, "<=", 0.2).ends == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert Promise.of_share("k", "w", 0.0, 100, "<=", 0.05).state == "kept"
    assert Promise.of_median("k", "w", (2.0, 1.5, 2.5), "<=", 3, quartiles_of=25).ends == pytest.approx((1.686, 2.314))
    assert Promise.of_median("k", "w", (2.0, 1.5, 2.6), "<=", 3).ends == (1.5, 2.6)


def test_a_two_way_bootstrap_counts_runs_and_samples():
    """Where only runs differ its error is that of their mean; where only samples do, that of theirs (wider for few runs)."""
    runs = np.repeat([[0.0], [1.0], [2.0]], 50, 1)
    assert bootstrap_error(runs) == pytest.approx(1 / 3**0.5)
    samples = np.tile(np.arange(100.0) % 2, (3, 1))
    assert bootstrap_error(samples) == pytest.approx(0.5 / 10 * 1.5**0.5)
    rng, mixed = np.random.default_rng(0), runs[:, :20] + 3 * samples[:, :20] + np.eye(3, 20)
    drawn = [mixed[rng.integers(3, size=(3, 1)), rng.integers(20, size=20)].mean() for _ in range(2000)]
    assert bootstrap_error(mixed) == pytest.approx(np.std(drawn) * 1.5**0.5, rel=0.05)
    both = Promise.of_both("k", "w", runs, ">=", 0.0)
    assert both.ends == pytest.approx((1 - 4.3027 / 3**0.5, 1 + 4.3027 / 3**0.5), rel=1e-4)
    assert Promise.of_both("k", "w", runs[:1], ">=", 0.0).state == "undecided"


def test_marked_parts_of_pages_are_replaced(tmp_path):
    page, other = tmp_path / "README.md", tmp_path / "other.md"
    page.write_text("# x\n<!-- a: by x -->\nold\n<!-- end of a -->\n<!-- ab: by x -->\n<!-- end of ab -->\nmore\n")
    other.write_text("nothing marked\n")
    for _ in range(2):
        assert harness.fill("a", ["new", r"\1 words"], [page, other]) == [page]
        assert page.read_text() == (
            "# x\n<!-- a: by x -->\n\nnew\n\\1 words\n\n<!-- end of a -->\n<!-- ab: by x -->\n<!-- end of ab -->\nmore\n"
        )
    assert other.read_text() == "nothing marked\n"


@pytest.mark.parametrize("text", ["<!-- a: by x -->\nold\n", "old\n<!-- end of a -->\n"])
def test_one_marker_without_the_other_is_an_error(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit, match="got only one of them"):
        harness.fill("a", ["new"], [page])


def test_all_works_take_turns_and_the_first_rounds_do_not_count():
    calls, clock = [], iter(range(100))
    works = {name: lambda turn, name=name: calls.append((name, turn)) for name in "ab"}
    assert harness.take_turns(works, 2, warm_up=1, clock=lambda: next(clock)) == {"a": [1, 1], "b": [1, 1]}
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert harness.spread([4.0, 1.0, 2.0]) == [2.0, 1.0, 4.0]


def test_charts_are_the_same_file_again_with_short_numbers(tmp_path):
    from matplotlib.figure import Figure

    for name in ("a", "b"):
        figure = Figure()
        figure.subplots().plot([1 / 3, 2 / 3], [1, 2], label="line")
        harness.save_svg(figure, tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert all(chart.stat().st_size < 60_000 for chart in (ROOT / "docs").rglob("*.svg"))
