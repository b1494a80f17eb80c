"""Words and names that a native reader stumbles on stay out of code and pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = [
    path for folder in ("src", "runtime/src", "benchmarks", "scripts", "website") for path in (ROOT / folder).rglob("*.py")
]
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
WORDS = re.compile(r"\b(mend(s|ed|ing)?|likewise|what is none|for who)\b", re.I)
FRAGMENT = re.compile(r"^(Of (the|a|an|each|every)\b|Whether\b|What (is|was|are)\b|How (a|an|the|far|many|much|often)\b)")
EMPTY_NAMES = {"one", "found", "own", "how", "theirs", "mine", "said", "some"}


def list_docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def list_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def test_no_stumbling_words():
    lines = [(path, i, line) for path in [*CODE, *PAGES] for i, line in enumerate(path.read_text().splitlines(), 1)]
    assert not [f"{path.relative_to(ROOT)}:{i}: {line}" for path, i, line in lines if WORDS.search(line)]


def test_docstrings_begin_with_a_subject_or_a_verb_and_names_say_something():
    fragments, empty = [], []
    for path in CODE:
        tree = ast.parse(path.read_text())
        fragments += [
            f"{path.relative_to(ROOT)}: {text.splitlines()[0]}" for text in list_docstrings(tree) if FRAGMENT.match(text)
        ]
        empty += [f"{path.relative_to(ROOT)}:{line}: {name}" for name, line in list_names(tree) if name in EMPTY_NAMES]
    assert not fragments
    assert not empty


def test_the_checks_find_what_they_ban():
    assert WORDS.search("an error and the mend")
    assert FRAGMENT.match("Whether it is a batch.")
    assert not FRAGMENT.match("Return whether it is a batch.")
    assert ("found", 1) in list(list_names(ast.parse("found = 1")))
