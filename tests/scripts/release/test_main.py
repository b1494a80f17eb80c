"""The table and the exit code; nothing is built or installed."""

import json
from pathlib import Path

import pytest

from scripts.release import __main__ as command
from scripts.release.environments import Environment, StepError

DIST = [f"{name}-1.2.3-py3-none-any.whl" for name in ("exitlens", "exitlens_runtime", "exitlens_demo_data")]


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """No archive has a fault, two Pythons are here, and what is installed works."""
    (dist := tmp_path / "dist").mkdir()
    for name in DIST:
        (dist / name).touch()
    monkeypatch.setattr(command, "check_archives", lambda dist: [])
    monkeypatch.setattr(command, "list_sizes", lambda dist: [("a.whl", 0.5, 1.5)])
    monkeypatch.setattr(command, "read_version", lambda: "1.2.3")
    monkeypatch.setattr(command, "find_pythons", lambda given: {"3.11": Path("a"), "3.13": Path("b")})
    monkeypatch.setattr(command, "list_requirements", lambda wheel, extras=(): ["numpy"])
    monkeypatch.setattr(Environment, "make", classmethod(lambda cls, folder, python: cls(folder)))
    monkeypatch.setattr(Environment, "install", lambda self, *requirements, **how: None)
    monkeypatch.setattr(Environment, "list_installed", lambda self: {"torch": "2.9.0", "rich": "14"})
    for name in ("run_library", "run_runtime"):
        monkeypatch.setattr(command, name, lambda *given: None)
    return dist


def call(*words):
    with pytest.raises(SystemExit) as stop:
        command.main([str(word) for word in words])
    return int(stop.value.code)


def test_every_python_twice_and_what_was_not_tried(pretended, tmp_path, capsys):
    assert call("--dist", pretended, "--json", tmp_path / "said.json") == 0
    out = capsys.readouterr().out
    assert out.count("works") == 8
    assert "3.13   lowest   exitlens-runtime  works   torch 2.9.0" in out
    assert "not on this machine: Python 3.12" in out
    assert "a release can be made" in out
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["sizes"] == [{"archive": "a.whl", "megabytes": 0.5}]
    pairs = {(outcome["python"], outcome["dependencies"]) for outcome in said["outcomes"]}
    assert pairs == {(python, which) for python in ("3.11", "3.13") for which in ("newest", "lowest")}


def test_what_fails_is_shown_and_the_rest_goes_on(pretended, monkeypatch, capsys):
    def fail(*given):
        raise StepError("exitlens-run: exit code 2\nerror: no bundle")

    monkeypatch.setattr(command, "run_runtime", fail)
    assert call("--dist", pretended) == 1
    out = capsys.readouterr().out
    assert out.count("works") == out.count("FAILED") == 4
    assert "    error: no bundle" in out
    assert "not ready" in out


def test_archives_alone(pretended, monkeypatch, capsys):
    monkeypatch.setattr(command, "check_archives", lambda dist: ["a.whl: b is missing"])
    assert call("--dist", pretended, "--archives-only") == 1
    assert "a.whl: b is missing" in capsys.readouterr().out
