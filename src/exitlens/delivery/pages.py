"""HTML templates: read from the package, escaped, with filters for numbers."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2


@cache
def template(name: str) -> jinja2.Template:
    """The template ``name`` of ``delivery/templates``; what it names and is not given is an error."""
    source = (files("exitlens.delivery") / "templates" / name).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda v, digits=1: "–" if v is None else f"{100 * v:.{digits}f}"
    environment.filters["number"] = lambda v, digits=2: "–" if v is None or v != v else f"{v:.{digits}f}"
    return environment.from_string(source)
