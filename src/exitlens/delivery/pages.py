"""HTML pages from the package's templates; explanations of samples that are no pictures: maps drawn, tokens shaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jinja2
from rich.table import Table
from rich.text import Text
from torch import Tensor

from exitlens.display import pick_shade, scale_attention, shade_names
from exitlens.types import Explanation
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import TextPreprocess


@cache
def load_template(name: str) -> jinja2.Template:
    """Loads a template from ``delivery/templates``; leaving out one of its variables is an error."""
    loader, undefined = jinja2.PackageLoader("exitlens.delivery"), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda v, digits=1: "–" if v is None else f"{100 * v:.{digits}f}"
    environment.filters["number"] = lambda v, digits=2: "–" if v is None or v != v else f"{v:.{digits}f}"
    environment.filters["threshold"] = lambda v: "never" if v > 1e9 else f"{v:.5f}"
    return environment.get_template(name)


def render_explanations(title: str, whys: Sequence[tuple[str, Explanation]]) -> str:
    """Renders explanations of samples that are no pictures, each under its heading.

    Texts have their tokens shaded by every exit's attention; series, volumes and vectors have maps drawn over them.
    """
    if isinstance(whys[0][1].preprocess, TextPreprocess):
        tools = {"shade": shade_names, "exit_name": exit_name}
        return load_template("tokens.html.j2").render(title=title, parts=whys, **tools)
    parts = [(heading, why._repr_html_()) for heading, why in whys]
    return load_template("explanations.html.j2").render(title=title, parts=parts)


def tabulate_tokens(why: Explanation, colour: bool = True) -> Table:
    """Returns a row for each exit: its answer, and the tokens shaded by its attention (without colour: in per cent)."""
    head = "tokens, darker: more attention" if colour else "tokens, with their share of the attention in %"
    table = Table("exit", "answer", "confidence", head, title=why.reason, title_justify="left", caption="* answered")
    for view in why.exits:
        name = exit_name(view.exit, len(why.exits)) + (" *" if view.exit == why.answered else "")
        shaded = _shade_line(why, view.attention, colour)
        table.add_row(name, why.name_answer(view), f"{view.confidence:.3f}", shaded)
    for label in why.labels:
        shaded = _shade_line(why, label.speaks_for, colour)
        table.add_row("speaks for", why.name(label.label), f"{label.probability:.3f}", shaded)
    if why.relevance is not None:
        table.add_row("depends on", why.name_answer(), "", _shade_line(why, why.speaks_for, colour))
    return table


def _shade_line(why: Explanation, attention: Tensor, colour: bool) -> Text:
    line = Text()
    for i, shade in enumerate(scale_attention(attention, len(why.tokens))):
        background, text = pick_shade(shade)
        style = f"{'white' if text == '#fff' else 'black'} on {background}" if colour else ""
        share = "" if colour else f"({100 * attention[i].item():.0f})"
        line.append(why.tokens[i] + share, style=style)
        line.append(" ")
    return line
