"""One version and one date in all places, and what is said where they differ."""

import shutil

import pytest

import exitlens
import exitlens_demo_data
import exitlens_runtime
from scripts.release.versions import PLACES, ROOT, read_dates, read_version, read_versions


def test_there_is_one_version():
    version = read_version()
    assert set(read_versions()) == set(PLACES)
    assert exitlens.__version__ == exitlens_runtime.__version__ == exitlens_demo_data.__version__ == version
    assert len(set(read_dates().values())) == 1


def test_a_place_that_was_forgotten_is_named(tmp_path):
    for name in PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert read_version(tmp_path) == read_version()
    path = tmp_path / "CHANGELOG.md"
    path.write_text(path.read_text().replace(f"## [{read_version()}]", "## [9.8.7]"))
    with pytest.raises(SystemExit, match=r"CHANGELOG\.md: 9\.8\.7"):
        read_version(tmp_path)
    (tmp_path / "CITATION.cff").write_text("message: none")
    with pytest.raises(SystemExit, match=r"CITATION\.cff: none"):
        read_version(tmp_path)
