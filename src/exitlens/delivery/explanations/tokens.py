"""Tokens shaded by attention, on a terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text
from torch import Tensor

from exitlens.delivery.explanations.pages import write_explanation
from exitlens.delivery.pages import load_template
from exitlens.display import pick_shade, scale_attention, shade_names
from exitlens.types import Explanation
from exitlens.types.outputs import exit_name

DEPENDS, SPEAKS_FOR = "depends on", "speaks for"


def tabulate_tokens(why: Explanation, colour: bool = True) -> Table:
    """A row for each exit: its answer, and the tokens shaded by its attention (without colour: in per cent)."""
    head = "tokens, darker: more attention" if colour else "tokens, with their share of the attention in %"
    table = Table("exit", "answer", "confidence", head, title=why.reason, title_justify="left")
    for view in why.exits:
        line = _shade_line(why, view.attention, colour)
        name = exit_name(view.exit, len(why.exits)) + (" *" if view.exit == why.answered else "")
        table.add_row(name, why.name_answer(view), f"{view.confidence:.3f}", line)
    for one in why.labels:
        line = _shade_line(why, one.speaks_for, colour)
        table.add_row(SPEAKS_FOR, why.name(one.label), f"{one.probability:.3f}", line)
    if why.relevance is not None:
        table.add_row(DEPENDS, why.name_answer(), "", _shade_line(why, why.speaks_for, colour))
    table.caption = "* answered"
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


def write_tokens(why: Explanation, directory: Path, name: str) -> list[Path]:
    """Writes ``NAME.html`` (shaded tokens) and ``NAME.json``, which must not exist, into a directory; returns both paths."""
    return write_explanation(why, directory, name, render_tokens)


def render_tokens(title: str, whys: Iterable[tuple[str, Explanation]]) -> str:
    """A page of explanations of texts, each under its heading."""
    parts = [
        (heading, why, [(exit_name(v.exit, len(why.exits)), v, shade_tokens(why, v.attention)) for v in why.exits])
        for heading, why in whys
    ]
    return load_template("tokens.html.j2").render(title=title, parts=parts, depends=_shade_relevance, shade=shade_tokens)


def _shade_relevance(why: Explanation) -> list[tuple[str, str, str]]:
    """What the answer depends on, or nothing."""
    return [] if why.relevance is None else shade_tokens(why, why.speaks_for)


def shade_tokens(why: Explanation, attention: Tensor) -> list[tuple[str, str, str]]:
    """Each token with its share of an exit's attention and the CSS style that shows it."""
    return shade_names(why.tokens, attention)
