"""Runs side by side."""

from benchmarks.side_by_side import is_chosen, make_runs


def half(number: int) -> str:
    return f"half of {number} is {12 // number}"


def start() -> None:
    """Nothing."""


def test_a_run_that_fails_is_told_and_the_others_are_made(capsys):
    assert make_runs({"a": (4,), "b": (0,), "c": (6,)}, half, start, processes=1) == ["b"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/3] half of 4 is 3"
    assert lines[1].startswith("[2/3] b failed: ZeroDivisionError")
    assert lines[2] == "[3/3] half of 6 is 2"


def test_patterns_choose_runs():
    assert is_chosen("scenes/egt-0", [])
    assert is_chosen("scenes/egt-0", ["pictures/*", "*-0"])
    assert not is_chosen("scenes/egt-0", ["pictures/*"])
