"""The public names are few and documented, and imported when they are first used."""

import subprocess
import sys

import pytest

import exitlens as xl

SPACES = ("data", "demo", "errors", "types")


def test_the_top_level_is_small():
    assert len(xl.__all__) <= 50


@pytest.mark.parametrize("name", xl.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(xl, name).__doc__
    assert name in dir(xl)


@pytest.mark.parametrize("space", SPACES)
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
