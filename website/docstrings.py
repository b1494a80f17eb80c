"""Makes Markdown of docstrings.

Roles (``:class:`exitlens.Policy```) become links of the reference, or code where there is no entry; so do names of pages
(docs/...md). Several errors or attributes in a line become a line each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

import exitlens

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`")
PAGE = re.compile(r"(?<!`)docs/([\w/]+/)(\w+)\.md\b")
SECTION = re.compile(r"^(Raises|Attributes):\n((?:^ .*\n|^\n(?= ))+)", re.M)


class ReadDocstrings(griffe.Extension):
    """Works on every docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(_link, obj.docstring.value)
            text = PAGE.sub(r"[\2](../\1\2.md)", text)  # from reference/NAME.md
            obj.docstring.value = SECTION.sub(_part, text + "\n").removesuffix("\n")


def _link(match: re.Match[str]) -> str:
    name = match[1].rsplit(".", 1)[-1]
    for space in (exitlens, exitlens.data, exitlens.demo, exitlens.errors, exitlens.types):  # the reference has the first
        if name in space.__all__:
            return f"[`{name}`][{space.__name__}.{name}]"
    return f"`{name}`"


def _part(match: re.Match[str]) -> str:
    """``a: first. b: second.`` in lines of their own."""
    begins = r"; (?=\w+Error: )" if match[1] == "Raises" else r"(?:\.|;) (?=[a-z_]+: )"
    text = re.sub(r"\n {8}", " ", match[2])  # continued lines
    return f"{match[1]}:\n" + re.sub(begins, ".\n    ", text)
