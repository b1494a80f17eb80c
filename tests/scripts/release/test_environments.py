"""Which interpreters are found, and how commands run in an environment; none is installed here."""

import sys

import pytest

from scripts.release import environments
from scripts.release.environments import Environment, StepError, find_pythons

OWN = "{}.{}".format(*sys.version_info[:2])


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path):
    write_program(tmp_path / "bin" / "python", f'exec "{sys.executable}" "$@"')
    return Environment(tmp_path)


def test_what_does_not_run_is_passed_over(tmp_path, monkeypatch):
    write_program(tmp_path / "shims" / "python3.12", "echo command not found >&2; exit 127")
    real = write_program(tmp_path / "bin" / "python3.12", "echo 3.12")
    write_program(tmp_path / "bin" / "python3.13", "echo 3.9")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}:{tmp_path / 'none'}")
    monkeypatch.setattr(environments.sys, "executable", str(tmp_path / "gone"))
    assert find_pythons() == {"3.12": real}
    given = write_program(tmp_path / "mine", "echo 3.12")
    assert find_pythons([given]) == {"3.12": given}


@pytest.mark.slow
@pytest.mark.skipif(OWN not in environments.VERSIONS, reason="another Python")
def test_the_one_that_runs_this_is_found():
    assert OWN in find_pythons()


def test_programs_run_without_the_surroundings(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    said = environment.run(
        "python", "-c", "import os; print(os.environ.get('PYTHONPATH'), os.environ['A'])", cwd=tmp_path, A="1"
    )
    assert said == "None 1\n"
    assert "pytest" in environment.list_installed()


def test_what_a_failure_printed_is_told(environment, tmp_path, monkeypatch):
    with pytest.raises(StepError, match=r"(?s)python -c .*exit code 1.*ValueError: too blue"):
        environment.run("python", "-c", "raise ValueError('too blue')", cwd=tmp_path)
    monkeypatch.setattr(environments, "LONGEST_SECONDS", 0.01)
    with pytest.raises(StepError, match="not done after"):
        environment.run("python", "-c", "import time; time.sleep(9)", cwd=tmp_path)


def test_lowest_versions_and_wheels_only(environment, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(environments, "_call", lambda words, cwd: asked.append(list(words)))
    Environment.make(tmp_path / "e", tmp_path / "python3")
    environment.install(["numpy>=1"], lowest=True, links=tmp_path)
    environment.install(["numpy>=1"])
    venv, lowest, newest = asked
    assert venv[-3:] == ["--python", str(tmp_path / "python3"), str(tmp_path / "e")]
    assert lowest[lowest.index("--resolution") + 1] == "lowest-direct"
    assert newest[newest.index("--resolution") + 1] == "highest"
    assert newest[newest.index("--only-binary") + 1] == ":all:"
    assert lowest[-3:] == ["--find-links", str(tmp_path), "numpy>=1"]
