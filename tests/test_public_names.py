"""The public names: imported when they are first used, and the same for type checkers as at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import exitlens as xl

STUB = Path(xl.__file__).with_suffix(".pyi")


def test_checkers_see_what_is_there_at_run_time():
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    stated = {alias.asname: node.module for node in imports for alias in node.names if node.module != "exitlens"}
    assert stated == {name: f"exitlens.{module}" for name, module in xl._HOME.items()}
    assert sorted(stated) == xl.__all__
    assert [alias.name for node in imports if node.module == "exitlens" for alias in node.names] == list(xl._SPACES)


def test_the_top_level_is_small():
    assert len(xl.__all__) <= 50


@pytest.mark.parametrize("name", xl.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(xl, name).__doc__
    assert name in dir(xl)


@pytest.mark.parametrize("space", xl._SPACES)
def test_names_of_a_space_are_documented_and_stand_there_alone(space):
    module = getattr(xl, space)
    assert module.__name__ == f"exitlens.{space}"
    assert space in dir(xl)
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        assert not callable(value) or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        xl.nothing_like_it  # noqa: B018


def test_importing_waits_for_nothing_large():
    code = "import sys, exitlens; exitlens.__version__; print(*{'torch', 'matplotlib', 'scipy', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not found.stdout.split()
