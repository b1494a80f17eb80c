"""The reference: every public name has one entry and an example, and every example gives what it says."""

from __future__ import annotations

import contextlib
import copy
import doctest
import inspect
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import exitlens as xl
import exitlens_runtime

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {page.stem: page.read_text() for page in sorted(REFERENCE.glob("*.md"))}
SPACES = (xl, xl.data, xl.demo, xl.errors, xl.types, exitlens_runtime)
PUBLIC = {f"{space.__name__}.{name}": getattr(space, name) for space in SPACES for name in space.__all__}
PUBLIC = {name: value for name, value in PUBLIC.items() if not inspect.ismodule(value)}
NAMES = {name: value for name, value in PUBLIC.items() if name == next(n for n, v in PUBLIC.items() if v is value)}
ALIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def read_sessions(page: str) -> str:
    """The interactive sessions of a page."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```", PAGES[page], re.M | re.S))


def find_page(name: str) -> str:
    """The only page with an entry for a name."""
    (page,) = [page for page, text in PAGES.items() for _ in re.findall(rf"^::: {re.escape(name)}$", text, re.M)]
    return page


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_public_name_has_one_entry_and_an_example(name):
    page = find_page(name)
    short = name.rpartition(".")[2]
    assert ">>> " in inspect.getdoc(NAMES[name]) or re.search(rf"\b{short}\b", read_sessions(page)), f"{name} has no example"


def test_every_entry_is_of_a_public_name():
    assert set(re.findall(r"^::: (\S+)$", "\n".join(PAGES.values()), re.M)) == set(NAMES)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder with what the examples read, and the names that they use."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGES["index"], re.M | re.S)
    folder, names = tmp_path_factory.mktemp("reference"), {}
    with contextlib.chdir(folder):
        exec(compile(code, "reference/index.md", "exec"), names)
    return folder, names


def list_examples() -> Mapping[str, str]:
    examples = {name: inspect.getdoc(value) for name, value in NAMES.items() if ">>> " in inspect.getdoc(value)}
    return examples | {page: read_sessions(page) for page in PAGES if read_sessions(page)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list_examples())
def test_an_example_gives_what_it_says(name, start, tmp_path, files_written_once):
    shutil.copytree(start[0], tmp_path, dirs_exist_ok=True)
    names = dict(start[1], net=copy.deepcopy(start[1]["net"]))
    torch.manual_seed(0)
    test = doctest.DocTestParser().get_doctest(list_examples()[name] + "\n", names, name, None, None)
    told: list[str] = []
    with contextlib.chdir(tmp_path):
        doctest.DocTestRunner(optionflags=ALIKE, verbose=False).run(test, out=told.append)
    assert not told, "".join(told)
