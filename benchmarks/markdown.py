"""Parts of Markdown pages that scripts write, each between its marker and the next end of results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

END = "<!-- end of results -->"


def replace(path: Path, marker: str, lines: Sequence[str]) -> None:
    """Puts the lines between the marker and the next end of results."""
    new = "\n".join([marker, "", *lines, "", END])
    page, count = re.subn(f"{re.escape(marker)}.*?{END}", lambda _: new, path.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path}: expected {marker!r} and after it {END!r} once, found it {count} times")
    path.write_text(page)
