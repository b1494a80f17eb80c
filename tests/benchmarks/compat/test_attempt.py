"""A cell in an environment that only pretends, and pytest's report."""

import pytest

from benchmarks.compat import attempt as module
from benchmarks.compat.attempt import TESTS, attempt, read_report, shorten
from benchmarks.compat.cells import Cell
from scripts.release.environments import Environment, StepError
from scripts.release.versions import ROOT

REPORT = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
<testcase name="test_a"/><testcase name="test_b"><failure message="AssertionError: 1 != 2&#10;more"/></testcase>
<testcase name="test_c"><skipped/></testcase><testcase name="test_d"/></testsuite></testsuites>"""
GOOD = '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="0"><testcase name="a"/></testsuite></testsuites>'


@pytest.fixture
def pretended(monkeypatch):
    """What the environment is asked to run; tests pass."""
    asked = []

    def run(self, *words, cwd, **variables):
        asked.append(words)
        for word in words:
            if word.startswith("--junit-xml="):
                (self.folder.parent / word.rpartition("/")[2]).write_text(GOOD)
        return ""

    monkeypatch.setattr(Environment, "make", classmethod(lambda cls, folder, python: cls(folder)))
    monkeypatch.setattr(Environment, "install", lambda self, requirements, lowest=False: None)
    monkeypatch.setattr(Environment, "list_installed", lambda self: {"torch": "2.9.1", "rich": "14"})
    monkeypatch.setattr(Environment, "run", run)
    return asked


def test_the_report_of_tests(tmp_path):
    (tmp_path / "r.xml").write_text(REPORT)
    assert read_report(tmp_path / "r.xml") == {"tests": 3, "failed": 1, "fault": "test_b: AssertionError: 1 != 2"}


def test_every_check_is_run(pretended, tmp_path):
    found = attempt(Cell("3.11", "2.11"), tmp_path)
    assert found == {
        "installed": {"torch": "2.9.1"},
        "readme": {"tests": 1, "failed": 0},
        **{check: {"tests": 2, "failed": 0} for check in TESTS},
    }
    assert all((ROOT / path).exists() for paths in TESTS.values() for path in paths)
    assert len(pretended) == 1 + len(TESTS)


def test_what_fails_is_kept(pretended, monkeypatch, tmp_path):
    def fail(self, *given, **how):
        raise StepError(f"python: exit code 1\nno such thing in {ROOT}/src")

    monkeypatch.setattr(Environment, "run", fail)
    found = attempt(Cell("3.11", "2.11"), tmp_path)
    assert found["readme"] == {"tests": 1, "failed": 1, "fault": "no such thing in ./src"}
    assert found["onnx"] == {"tests": 0, "failed": 1, "fault": "no such thing in ./src"}
    monkeypatch.setattr(Environment, "install", fail)
    assert attempt(Cell("3.11", "2.11"), tmp_path) == {"fault": "no such thing in ./src"}
    assert module.SURROUNDINGS["PYTHONPATH"].endswith(str(ROOT))
    assert shorten(StepError("a\n\n b \n")) == "b"
