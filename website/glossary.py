"""Shows the glossary's words on every page: the first use of each in running text carries its meaning.

The words are at one place, the table of docs/concepts/glossary.md. They become abbreviations (the Markdown extension
``abbr``) of every page; what repeats, and what stands in a heading or a link, is plain text again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

GLOSSARY = "concepts/glossary.md"
ROW = re.compile(r"^\| (?P<word>[a-z][a-z ]*?) +\| (?P<meaning>.+?) +\|$", re.M)
PLAIN = r"<(?P<tag>h[1-6]|a|th|pre)\b.*?</(?P=tag)>"  # nothing in these is marked
MARK = re.compile(rf'{PLAIN}|<abbr title="(?P<meaning>[^"]*)">(?P<word>[^<]*)</abbr>', re.S)
DOCSTRINGS = "reference/"


def read_glossary() -> dict[str, str]:
    """Return the meanings by word."""
    page = Path(__file__).parent.parent / "docs" / GLOSSARY
    return {row["word"]: row["meaning"] for row in ROW.finditer(page.read_text()) if row["word"] != "word"}


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    if page.file.src_uri == GLOSSARY or page.file.src_uri.startswith(DOCSTRINGS):
        return markdown
    lines = [f"*[{form}]: {meaning}" for word, meaning in read_glossary().items() for form in list_forms(word)]
    return "\n".join([markdown, "", *lines, ""])


def list_forms(word: str) -> list[str]:
    """Return a word and its plural, as they stand within a sentence and at its start."""
    plural = word if word.endswith("s") else f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    forms = dict.fromkeys((word, plural))
    return [*forms, *(form.capitalize() for form in forms)]


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    shown = set[str]()

    def keep_first(match: re.Match[str]) -> str:
        meaning = match["meaning"]
        if meaning is None:
            return re.sub(r"</?abbr\b[^>]*>", "", match[0])
        if meaning in shown or html[match.start() - 1] == "-":  # two-stage training is something else
            return match["word"]
        shown.add(meaning)
        return match[0]

    return MARK.sub(keep_first, html)
