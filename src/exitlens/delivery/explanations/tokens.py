"""Tokens shaded by attention, on a terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text
from torch import Tensor

from exitlens.delivery.pages import load_template
from exitlens.errors import OutputExistsError
from exitlens.io import write_json, write_text
from exitlens.types import Explanation
from exitlens.types.words import exit_name

_SHADE = (0, 114, 178)  # a blue that works in grey and for colour-blind readers
_DARK = 0.93  # shades from which white stands out better than black: either has a contrast of 4.5 or more


DEPENDS, SPEAKS_FOR = "depends on", "speaks for"


def scale_attention(attention: Tensor, count: int) -> list[float]:
    """Divides the attention of the first ``count`` tokens by the largest."""
    shown = attention.flatten()[:count]
    return [float(v) for v in shown / attention.max().clamp_min(1e-12)]


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
        r, g, b = _mix_colour(shade)
        style = f"{'white' if shade > _DARK else 'black'} on rgb({r},{g},{b})" if colour else ""
        share = "" if colour else f"({100 * attention[i].item():.0f})"
        line.append(why.tokens[i] + share, style=style)
        line.append(" ")
    return line


def write_tokens(why: Explanation, directory: Path, name: str) -> list[Path]:
    """Writes ``NAME.html`` (shaded tokens) and ``NAME.json``, which must not exist, into a directory; returns both paths."""
    page, values = directory / f"{name}.html", directory / f"{name}.json"
    for path in (page, values):
        if path.exists():
            raise OutputExistsError(f"out: {path} exists: choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    write_text(page, render_tokens(why.reason, [("", why)]))
    write_json(values, why.to_dict())
    return [page, values]


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
    shown = zip(why.tokens, attention, scale_attention(attention, len(why.tokens)), strict=False)
    found = []
    for token, share, shade in shown:
        r, g, b = _mix_colour(shade)
        style = f"background: rgb({r},{g},{b}); color: {'#fff' if shade > _DARK else '#000'}"
        found.append((token, f"{float(share):.3f}", style))
    return found


def _mix_colour(shade: float) -> tuple[int, int, int]:
    r, g, b = (round(255 + (c - 255) * shade) for c in _SHADE)
    return r, g, b
