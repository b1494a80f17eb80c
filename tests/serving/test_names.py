"""What models are called."""

from pathlib import Path

import pytest

import exitlens as xl
from exitlens.serving.names import name_bundles


def test_names_that_are_given_and_those_of_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["a=runs/x", "runs/b.1", "c-2=runs/lr=0.1", "."]
    assert name_bundles(given) == {
        "a": Path("runs/x"),
        "b.1": Path("runs/b.1"),
        "c-2": Path("runs/lr=0.1"),
        tmp_path.name: Path(),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([""], "DIR or NAME=DIR, got ''"),
        (["a="], "DIR or NAME=DIR, got 'a='"),
        (["a b=x"], "letters, digits.*'a b'"),
        (["-a=x"], "letters, digits"),
        (["a/b=x"], "letters, digits"),
        (["ä=x"], "letters, digits"),
        (["runs/my bundle"], "got 'my bundle': give NAME=DIR"),
        (["/"], "letters, digits"),
        (["a=x", "runs/a"], "two models are called a"),
    ],
)
def test_names_that_are_refused(given, words):
    with pytest.raises(xl.InputError, match=words):
        name_bundles(given)
