"""Turns the roles of docstrings (``:class:`exitlens.Policy```) into links of the reference, or into code where it has no entry."""

from __future__ import annotations

import re
from typing import Any

import exitlens
import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Works on every docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_link, obj.docstring.value)


def _link(found: re.Match[str]) -> str:
    name = found[1].rsplit(".", 1)[-1]
    return f"[`{name}`][exitlens.{name}]" if name in exitlens.__all__ else f"`{name}`"
