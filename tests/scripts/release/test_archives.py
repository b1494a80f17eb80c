"""Faults of archives that are made up: what is missing, what has no place, what is too large."""

import io
import tarfile
import zipfile

import pytest

from scripts.release import archives
from scripts.release.archives import DISTRIBUTIONS, Distribution, check_metadata, find_faults, list_sizes
from scripts.release.versions import ROOT

GOOD = {"toy/__init__.py": '__version__ = "1.2.3"\n', "toy/py.typed": ""}
NOTES = {"toy-1.2.3.dist-info/METADATA": "", "toy-1.2.3.dist-info/licenses/LICENSE": ""}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Archives of a toy distribution with the given files; what is wrong with them."""
    monkeypatch.setattr(archives, "ROOT", tmp_path)
    for name, text in GOOD.items():
        (path := tmp_path / "toy" / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (dist := tmp_path / "dist").mkdir()

    def write(inside: dict[str, str], source: dict[str, str], largest: float = 1.0) -> list[str]:
        monkeypatch.setattr(archives, "DISTRIBUTIONS", (Distribution("toy", "toy", "toy", largest),))
        with zipfile.ZipFile(dist / "toy-1.2.3-py3-none-any.whl", "w") as wheel:
            for name, text in inside.items():
                wheel.writestr(name, text)
        with tarfile.open(dist / "toy-1.2.3.tar.gz", "w:gz") as sdist:
            for name, text in source.items():
                member = tarfile.TarInfo(f"toy-1.2.3/{name}")
                member.size = len(text)
                sdist.addfile(member, io.BytesIO(text.encode()))
        return find_faults(dist)

    return write


def test_nothing_is_wrong_with_what_is_whole(make, tmp_path):
    assert make(GOOD | NOTES, {"PKG-INFO": "x"}) == []
    (name, megabytes, largest), (sdist, _, unbounded) = list_sizes(tmp_path / "dist")
    assert (name, sdist) == ("toy-1.2.3-py3-none-any.whl", "toy-1.2.3.tar.gz")
    assert 0 < megabytes < largest == 1.0
    assert unbounded is None


def test_every_fault_is_named(make):
    inside = dict.fromkeys(("toy/__init__.py", "tests/test_toy.py", "toy/__pycache__/a.pyc"), "") | NOTES
    inside["toy-1.2.3.dist-info/METADATA"] = "[a](https://b) [c](d.md)"
    faults = make(inside, {"src/.mypy_cache/x": "y"}, largest=0.0)
    expected = ["expected at most 0.0 MB", "toy/py.typed is missing", "tests/test_toy.py is outside the package"]
    expected += ["toy/__pycache__/a.pyc has no place there", "toy-1.2.3.tar.gz: src/.mypy_cache/x has no place there"]
    expected += ["link to d.md, expected a whole address"]
    assert len(faults) == len(expected)
    assert all(any(words in fault for fault in faults) for words in expected)


def test_a_source_archive_is_held_to_what_git_tracks(make, monkeypatch):
    monkeypatch.setattr(archives, "list_tracked", lambda one: {"a.py", "b.py"})
    assert make(GOOD | NOTES, {"PKG-INFO": "", "a.py": "", "notes.txt": ""}) == [
        "toy-1.2.3.tar.gz: b.py is missing",
        "toy-1.2.3.tar.gz: notes.txt is not tracked by git",
    ]


def test_one_archive_of_each_kind_is_expected(tmp_path):
    with pytest.raises(SystemExit, match=r"expected one exitlens archive \*\.whl, got 0"):
        DISTRIBUTIONS[0].find(tmp_path, ".whl")
    (tmp_path / "exitlens_runtime-1.0.0-py3-none-any.whl").touch()
    assert DISTRIBUTIONS[1].find(tmp_path, ".whl").exists()
    with pytest.raises(SystemExit, match="got 0"):  # its name begins like that of the library
        DISTRIBUTIONS[0].find(tmp_path, ".whl")


def test_a_tool_that_is_not_there_or_finds_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match=r"twine is not installed .*\.\[release\]"):
        check_metadata(tmp_path)
    (tmp_path / "twine").write_text("#!/bin/sh\necho no readme; exit 3\n")
    (tmp_path / "twine").chmod(0o755)
    with pytest.raises(SystemExit, match=r"(?s)twine check --strict.*exit code 3.*no readme"):
        check_metadata(tmp_path)


def test_every_distribution_has_a_project_a_licence_and_a_package():
    for one in DISTRIBUTIONS:
        folder = ROOT / one.folder
        assert f'name = "{one.name}"' in (folder / "pyproject.toml").read_text()
        assert (folder / "LICENSE").exists()
        assert (folder / "src" / one.package / "py.typed").exists()
