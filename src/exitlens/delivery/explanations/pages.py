"""Explanations of samples that are no pictures (series, volumes, vectors) as a page: answers, and maps over the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from exitlens.delivery.pages import load_template
from exitlens.errors import OutputExistsError
from exitlens.io import write_json, write_text
from exitlens.types import Explanation

Render = Callable[[str, Iterable[tuple[str, Explanation]]], str]


def render_explanations(title: str, whys: Iterable[tuple[str, Explanation]]) -> str:
    """A page of explanations, each under its heading."""
    parts = [(heading, why._repr_html_()) for heading, why in whys]
    return load_template("explanations.html.j2").render(title=title, parts=parts)


def write_explanation(why: Explanation, directory: Path, name: str, render: Render = render_explanations) -> list[Path]:
    """Writes ``NAME.html`` and ``NAME.json``, which must not exist, into a directory; returns both paths."""
    page, values = directory / f"{name}.html", directory / f"{name}.json"
    for path in (page, values):
        if path.exists():
            raise OutputExistsError(f"out: {path} exists: choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    write_text(page, render(why.reason, [("", why)]))
    write_json(values, why.to_dict())
    return [page, values]
