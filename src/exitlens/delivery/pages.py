"""HTML templates from the package, with escaping and filters for numbers."""

from __future__ import annotations

from functools import cache

import jinja2


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("exitlens.delivery"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda v, digits=1: "–" if v is None else f"{100 * v:.{digits}f}"
    made.filters["number"] = lambda v, digits=2: "–" if v is None or v != v else f"{v:.{digits}f}"
    made.filters["threshold"] = lambda v: "never" if v > 1e9 else f"{v:.5f}"
    return made


def load_template(name: str) -> jinja2.Template:
    """Loads ``name`` of ``delivery/templates``; a variable that it is not given is an error."""
    return _environment().get_template(name)
