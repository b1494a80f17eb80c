"""The cells hold to pyproject.toml."""

import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from benchmarks.compat.cells import CELLS, TORCH, Cell, find_lowest, list_dependencies
from scripts.release.environments import VERSIONS
from scripts.release.versions import ROOT


def test_they_begin_at_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={VERSIONS[0]}"
    assert f"torch>={TORCH[0]}" in project["dependencies"]
    assert find_lowest("timm") == next(one for one in list_dependencies() if one.startswith("timm")).replace(">=", "==")
    assert find_lowest("transformers").endswith(".*")


def test_names_are_unique_and_every_version_has_a_cell():
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert {cell.torch for cell in CELLS} == set(TORCH)
    assert {cell.python for cell in CELLS} == set(VERSIONS)


def test_requirements_can_be_met_together():
    for cell in CELLS:
        both = SpecifierSet()
        for one in map(Requirement, cell.list_requirements()):
            if one.name == "torch":
                both &= one.specifier
        assert both.contains(f"{cell.torch}.1")
    assert "timm==1.0.9" in Cell("3.11", "2.11", ("timm",)).list_requirements()
    assert Cell("3.11", "2.11", ("all",)).is_lowest
