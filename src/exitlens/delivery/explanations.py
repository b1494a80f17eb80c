"""Explanations as files and tables: one with all its maps, or many, the most remarkable first; and the pages' templates."""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from rich.table import Table
from rich.text import Text
from torch import Tensor

from exitlens.delivery.pictures import draw_contact_sheet, draw_input, draw_overlay, draw_strip, draw_view
from exitlens.display import map_svg, pick_shade, scale_attention, shade_names
from exitlens.errors import OutputExistsError
from exitlens.io import make_directory, write_json, write_manifest, write_text
from exitlens.model.network import ExitNet
from exitlens.types import Explanation, Policy
from exitlens.types.explanations import SCHEMA
from exitlens.types.inputs import Inputs
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import Preprocess, TextPreprocess
from exitlens.workflow.explanation import explain_batch

TABLE, SHEET, MANIFEST = "explanations.csv", "contact_sheet.png", "manifest.json"
TOKENS, PAGE = "tokens.html", "explanations.html"
SHOWN = 24  # samples on the contact sheet or page
KEY = "Where it is brighter, or a name darker, the exit attends more. Point at a place to read what it is worth."


@cache
def load_template(name: str) -> jinja2.Template:
    """Load a template from ``delivery/templates``; leaving out one of its variables is an error."""
    loader, undefined = jinja2.PackageLoader("exitlens.delivery"), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda v, digits=1: "–" if v is None else f"{100 * v:z.{digits}f}"
    environment.filters["number"] = lambda v, digits=2: "–" if v is None or v != v else f"{v:z.{digits}f}"
    environment.filters["threshold"] = lambda v: "never" if v > 1e9 else f"{v:.5f}"
    return environment.get_template(name)


def render_explanations(title: str, whys: Sequence[tuple[str, Explanation]]) -> str:
    """Render explanations of samples that are no pictures, each under its heading: tokens shaded, or maps drawn."""
    if isinstance(whys[0][1].preprocess, TextPreprocess):
        tools = {"shade": shade_names, "exit_name": exit_name}
        return load_template("tokens.html.j2").render(title=title, parts=whys, **tools)
    parts = [(heading, why._repr_html_()) for heading, why in whys]
    return load_template("explanations.html.j2").render(title=title, parts=parts, key=KEY)


def tabulate_tokens(why: Explanation, colour: bool = True) -> Table:
    """Return a row for each exit: its answer, and the tokens shaded by its attention (without colour: in per cent)."""
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


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise OutputExistsError(f"out: {path} exists. Fix: choose another directory.")


def save_explanation(why: Explanation, out: Path, stem: str = "explanation") -> list[Path]:
    """Write an explanation to new files: of an image as pictures, otherwise as a page, with the answer (JSON) beside it."""
    if isinstance(why.preprocess, Preprocess):
        return _save_pictures(why, out, stem)
    page, values = out / f"{stem}.html", out / f"{stem}.json"
    _refuse_existing((page, values))
    make_directory(out, "out")
    write_text(page, render_explanations(why.reason, [("", why)]))
    write_json(values, why.to_dict())
    return [page, values]


def _save_pictures(why: Explanation, out: Path, stem: str) -> list[Path]:
    """Write every map (PNG and SVG), what the exits tell of pixels, a strip of all exits, the answer (JSON) and a manifest.

    The maps are those of the exits, of the answer's labels if there are several, and the relevance if there is one.
    """
    base = draw_input(why)
    maps: list[tuple[str, Tensor, Tensor, str]] = [  # end of the name, map, what each place is worth, caption
        (f"exit{v.exit}", v.attention, v.evidence, why.caption_exit(v)) for v in why.exits
    ]
    maps += [
        (f"label{label.label}", label.speaks_for, label.evidence, f"What speaks for {why.name(label.label)}")
        for label in why.labels
    ]
    if why.relevance is not None:
        maps.append(("relevance", why.speaks_for, why.relevance, f"What the answer {why.name_answer()} depends on"))
    pictures = {out / f"{stem}_strip.png": draw_strip(why)}
    for view in why.exits if why.exits[0].pixels is not None else ():
        pictures[out / f"{stem}_exit{view.exit}_labels.png"] = draw_view(base, why, view)
    pictures |= {out / f"{stem}_{name}.png": draw_overlay(base, attention) for name, attention, _, _ in maps}
    drawings = {out / f"{stem}_{name}.svg": map_svg(base, *rest) + "\n" for name, *rest in maps}  # type: ignore[arg-type]
    paths = [*pictures, *drawings, out / f"{stem}.json", out / f"{stem}_manifest.json"]
    _refuse_existing(paths)
    make_directory(out, "out")
    for path, picture in pictures.items():
        picture.save(path)
    for path, drawing in drawings.items():
        write_text(path, drawing)
    write_json(paths[-2], why.to_dict())
    write_manifest(paths[-1], paths[:-1], {"schema": SCHEMA, "label": why.name_answer(), "answered": why.answered})
    return paths


@dataclass(frozen=True)
class ExplanationRow:
    """A row of the table; ``divergence`` and ``cc`` compare the map at the exit taken with the final one.

    ``cc_null`` is the mean correlation with another sample's map.
    """

    file: str
    answer: str
    exit: int
    confidence: float
    runner_up: str
    final: str
    disagrees: bool
    divergence: float
    cc: float
    cc_null: float | None
    cost: float
    reason: str
    differing: float | None = None  # share of the pixels whose class is not the final exit's, if each has one

    @property
    def interest(self) -> tuple[bool, float]:
        """Sorts the table: early answers that the final exit contradicts come first, then the most divergent maps.

        Where each pixel is answered, the share of those that the final exit answers otherwise takes the place of both.
        """
        return (self.disagrees, self.divergence) if self.differing is None else (False, self.differing)

    def write_title(self, num_exits: int) -> str:
        """Return the sample and its answer, for the contact sheet."""
        name = self.file if len(self.file) <= 40 else "…" + self.file[-39:]
        final = f", FINAL EXIT SAYS {self.final}" if self.disagrees else ""
        place = exit_name(self.exit, num_exits)
        if self.differing is not None:
            share = f"{100 * self.differing:.1f} % of the pixels"
            return f"{name}: {place} ({self.confidence:.2f}), the final exit differs at {share}"
        return f"{name}: {self.answer} ({self.confidence:.2f}) at {place}{final}, divergence {self.divergence:.2f}"


def summarize_explanation(file: str, why: Explanation) -> ExplanationRow:
    """Turn an explanation that includes the final exit into a row of the table."""
    view, final = why.exits[why.answered], why.exits[-1]
    return ExplanationRow(
        file,
        why.name_answer(),
        why.answered,
        round(view.confidence, 6),
        why.name(view.runner_up),
        why.name_answer(final),
        why.disagrees,
        round(view.divergence or 0.0, 6),
        round(view.cc or 0.0, 6),
        None if view.cc_null is None else round(view.cc_null, 6),
        round(view.cost, 6),
        why.reason,
        None if view.pixels is None or view.pixels.differs is None else round(view.pixels.differs.float().mean().item(), 6),
    )


def explain_folder(
    net: ExitNet, policy: Policy, samples: Iterable[Inputs], name: Callable[[int], str], out: Path
) -> list[ExplanationRow]:
    """Explain batches of samples and write a table, a contact sheet (if they are no images, a page) and a manifest.

    Every exit runs. Memory holds the table's rows of all samples, and the maps of the most remarkable ones. ``name`` gives
    the i-th sample's name, once it has been read.

    Returns:
        The rows of the table, the most remarkable first.
    """
    sheet, table = out / name_sheet(net), out / TABLE
    _refuse_existing((table, sheet, out / MANIFEST))
    rows: list[ExplanationRow] = []
    shown: list[tuple[tuple[bool, float], int, ExplanationRow, Explanation]] = []
    for batch in samples:
        for why in explain_batch(net, batch, policy):
            row = summarize_explanation(name(len(rows)), why)
            heapq.heappush(shown, (row.interest, -len(rows), row, why))  # the first wins a tie
            if len(shown) > SHOWN:
                heapq.heappop(shown)
            rows.append(row)
    rows.sort(key=lambda row: row.interest, reverse=True)  # stable
    if rows:
        make_directory(out, "out")
        shown.sort(key=lambda item: item[:2], reverse=True)
        titled = [(row.write_title(net.num_exits), why) for *_, row, why in shown]
        if isinstance(net.info.preprocess, Preprocess):
            titles, whys = zip(*titled, strict=True)
            draw_contact_sheet({"": whys}, titles).save(sheet)
        else:
            write_text(sheet, render_explanations("What deserves a look first", titled))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(vars(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(vars, rows))
        write_text(table, text.getvalue())
        counts = {"samples": len(rows), "disagree": sum(row.disagrees for row in rows), "shown": len(shown)}
        facts = {"schema": SCHEMA, "network": net.identity(), "policy": policy.to_dict(), **counts}
        write_manifest(out / MANIFEST, [table, sheet], facts)
    return rows


def name_sheet(net: ExitNet) -> str:
    """Return the name of the file that shows the most remarkable samples."""
    preprocess = net.info.preprocess
    return SHEET if isinstance(preprocess, Preprocess) else TOKENS if isinstance(preprocess, TextPreprocess) else PAGE
