"""Words and names that a native reader stumbles on stay out of code and pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.architecture import parse

ROOT = Path(__file__).parent.parent
CODE = [
    path for folder in ("src", "runtime/src", "benchmarks", "scripts", "website") for path in (ROOT / folder).rglob("*.py")
]
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
WORDS = re.compile(r"\b(mend(s|ed|ing)?|likewise|what is none|for who)\b", re.I)
FRAGMENT = re.compile(r"^(Of (the|a|an|each|every)\b|Whether\b|What (is|was|are)\b|How (a|an|the|far|many|much|often)\b)")
EMPTY_NAMES = {"one", "found", "own", "how", "theirs", "mine", "said", "some"}


def list_stumbles(tree: ast.Module) -> Iterator[str]:
    """First lines of docstrings, and names that are bound, that say too little."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.arg):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node.ctx, ast.Store) else ""
            if name in EMPTY_NAMES:
                yield f"{node.lineno}: {name}"
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            yield from [f" {text.splitlines()[0]}"] if FRAGMENT.match(text) else []


def test_no_stumbling_words():
    lines = [(path, i, line) for path in [*CODE, *PAGES] for i, line in enumerate(path.read_text().splitlines(), 1)]
    assert not [f"{path.relative_to(ROOT)}:{i}: {line}" for path, i, line in lines if WORDS.search(line)]


@pytest.mark.slow
def test_docstrings_begin_with_a_subject_or_a_verb_and_names_say_something():
    assert not [f"{path.relative_to(ROOT)}:{text}" for path in CODE for text in list_stumbles(parse(path))]


def test_the_checks_find_what_they_ban():
    assert WORDS.search("an error and the mend")
    code = "def check(own):\n    'Whether it is a batch.'\n    found = own"
    assert sorted(list_stumbles(ast.parse(code))) == [" Whether it is a batch.", "1: own", "3: found"]
    assert not list(list_stumbles(ast.parse("def check(batch):\n    'Return whether it is a batch.'\n    return batch")))
