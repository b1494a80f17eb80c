"""Parts of Markdown pages that commands write, between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``, and their tables and charts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]


def list_pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md"))]


def fill(name: str, lines: Sequence[str], pages: Iterable[Path] | None = None) -> list[Path]:
    """Rewrite a part on every page that has both its markers, and return these pages."""
    pattern = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->)(.*?)<!-- end of {re.escape(name)} -->", re.DOTALL)
    written = []
    for path in list_pages() if pages is None else pages:
        text = path.read_text()
        page, count = pattern.subn(lambda match: "\n".join([match[1], "", *lines, "", f"<!-- end of {name} -->"]), text)
        if count != text.count(f"<!-- {name}: ") or count != text.count(f"<!-- end of {name} -->"):
            raise SystemExit(f"{path}: expected '<!-- {name}: ... -->' and '<!-- end of {name} -->', got only one of them")
        if count:
            path.write_text(page)
            written.append(path)
    return written


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def join_means(columns: Iterable[Sequence[float | None]], digits: int, scale: float = 1) -> str:
    """Join the means over runs of each exit's value, without those that are ``None``: ``0.12 / 0.34 / none``."""
    exits = ([scale * value for value in column if value is not None] for column in zip(*columns, strict=True))
    return " / ".join(f"{mean(values):.{digits}f}" if values else "none" for values in exits)


def show_interval(values: Sequence[float], digits: int = 2) -> str:
    """Write a middle value and the two ends around it: ``1.20 (1.10 to 1.30)``."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure that is the same file every time: text as text, coordinates to a hundredth of a point."""
    import matplotlib as mpl

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "exitlens",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(style):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", path.read_text())
    path.write_text(re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text))
