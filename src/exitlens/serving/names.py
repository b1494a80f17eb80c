"""What models are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from exitlens.errors import InputError


def name_bundles(given: Sequence[str]) -> dict[str, Path]:
    """Directories by the names of their models: NAME=DIR, or the directory's own name; raises :class:`InputError`.

    What is before the first ``=`` is the name: a directory with that sign in its path needs one.
    """
    found: dict[str, Path] = {}
    for one in given:
        name, is_named, directory = one.partition("=")
        if not is_named:
            name, directory = "", one
        path = Path(directory)
        if not directory:
            raise InputError(f"bundle: expected DIR or NAME=DIR, got {one!r}")
        name = name or path.resolve().name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"bundle: expected a name of letters, digits, '.', '_' and '-', got {name!r}: give NAME=DIR")
        if name in found:
            raise InputError(f"bundle: two models are called {name}: give one another name by NAME=DIR")
        found[name] = path
    return found
