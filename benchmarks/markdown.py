"""Parts of Markdown pages that commands write: a part stands between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def list_pages() -> list[Path]:
    """The README and everything under docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(name: str, lines: Sequence[str], pages: Iterable[Path] | None = None) -> list[Path]:
    """Writes a part anew on every page that has its markers; these pages.

    Raises:
        SystemExit: if a page has one of the two markers without the other.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->)(.*?)<!-- end of {re.escape(name)} -->", re.DOTALL)
    written = []
    for path in list_pages() if pages is None else pages:
        text = path.read_text()
        page, count = pattern.subn(lambda found: "\n".join([found[1], "", *lines, "", f"<!-- end of {name} -->"]), text)
        if count != text.count(f"<!-- {name}: ") or count != text.count(f"<!-- end of {name} -->"):
            raise SystemExit(
                f"{path}: expected '<!-- {name}: ... -->' and after it '<!-- end of {name} -->', found one of them"
            )
        if count:
            path.write_text(page)
            written.append(path)
    return written


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def say_what_is_missing(names: Sequence[str], there: Container[str], command: str) -> list[str]:
    """A line for a page whose runs are not all there; no line where they are."""
    count = sum(name in there for name in names)
    if count == len(names):
        return []
    return [f"**Not complete**: {count} of {len(names)} runs are there; `{command}` goes on.", ""]
