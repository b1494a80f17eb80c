"""Explanations of many samples as a table and a contact sheet (of what is no picture, a page), the most remarkable first."""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitlens.delivery.explanations.pages import render_explanations
from exitlens.delivery.explanations.pictures import draw_contact_sheet
from exitlens.delivery.explanations.tokens import render_tokens
from exitlens.errors import OutputExistsError
from exitlens.io import write_manifest, write_text
from exitlens.model.network import ExitNet
from exitlens.types import SCHEMA, Explanation, Policy, Preprocess, Preprocessing, TextPreprocess
from exitlens.types.inputs import Inputs, count_rows
from exitlens.workflow.explanation import explain_batch

TABLE, SHEET, MANIFEST = "explanations.csv", "contact_sheet.png", "manifest.json"
TOKENS, PAGE = "tokens.html", "explanations.html"
SHOWN = 24  # samples on the contact sheet or page


@dataclass(frozen=True)
class Line:
    """A row of the table.

    ``final`` is the final exit's answer; ``divergence`` and ``cc`` compare its map with that of the exit that answered.
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
    cost: float
    reason: str

    @property
    def interest(self) -> tuple[bool, float]:
        """Sorts the table: early answers that the final exit contradicts come first, then the most divergent maps."""
        return self.disagrees, self.divergence

    @property
    def title(self) -> str:
        """The sample and its answer, for the contact sheet."""
        name = self.file if len(self.file) <= 40 else "…" + self.file[-39:]
        final = f", FINAL EXIT SAYS {self.final}" if self.disagrees else ""
        return f"{name}: {self.answer} ({self.confidence:.2f}) at exit {self.exit}{final}, divergence {self.divergence:.2f}"


def summarize_line(file: str, why: Explanation) -> Line:
    """Turns an explanation that includes the final exit into a row of the table."""
    view, final = why.exits[why.answered], why.exits[-1]
    return Line(
        file,
        why.name_answer(),
        why.answered,
        round(view.confidence, 6),
        why.name(view.runner_up),
        why.name_answer(final),
        why.disagrees,
        round(view.divergence or 0.0, 6),
        round(view.cc or 0.0, 6),
        round(view.cost, 6),
        why.reason,
    )


def explain_folder(
    net: ExitNet,
    policy: Policy,
    samples: Iterable[Inputs],
    name: Callable[[int], str],
    preprocess: Preprocessing,
    out: Path,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Line]:
    """Explains batches of samples and writes table, contact sheet (of others than images, a page) and manifest.

    Of every sample the row of the table is held in memory, of the most remarkable ones the maps, too.

    Args:
        net: every exit runs.
        policy: of this network.
        samples: batches of network input.
        name: gives the i-th sample's name, once it has been read.
        preprocess: of the network, undone to show images.
        out: a directory without the three files.
        advance: called with the number of samples done.

    Returns:
        The rows of the table, the most remarkable first.

    Raises:
        OutputExistsError: if one of the files exists.
    """
    for file in (TABLE, name_sheet(preprocess), MANIFEST):
        if (out / file).exists():
            raise OutputExistsError(f"out: {out / file} exists: choose another directory")
    lines: list[Line] = []
    kept: list[tuple[tuple[bool, float], int, Line, Explanation]] = []
    for batch in samples:
        for why in explain_batch(net, batch, policy):
            line = summarize_line(name(len(lines)), why)
            heapq.heappush(kept, (line.interest, -len(lines), line, why))  # the first wins a tie
            if len(kept) > SHOWN:
                heapq.heappop(kept)
            lines.append(line)
        advance(count_rows(batch))
    lines.sort(key=lambda line: line.interest, reverse=True)  # stable
    if lines:
        kept.sort(key=lambda item: item[:2], reverse=True)
        out.mkdir(parents=True, exist_ok=True)
        sheet = out / name_sheet(preprocess)
        _draw(sheet, [(line.title, why) for *_, line, why in kept], preprocess)
        _write(out, lines, sheet, {"network": net.identity(), "policy": policy.to_dict()})
    return lines


def name_sheet(preprocess: Preprocessing) -> str:
    """The file that shows the most remarkable samples."""
    return SHEET if isinstance(preprocess, Preprocess) else TOKENS if isinstance(preprocess, TextPreprocess) else PAGE


def _draw(path: Path, shown: Sequence[tuple[str, Explanation]], preprocess: Preprocessing) -> None:
    if not isinstance(preprocess, Preprocess):
        render = render_tokens if isinstance(preprocess, TextPreprocess) else render_explanations
        write_text(path, render("What deserves a look first", shown))
        return
    titles = [title for title, _ in shown]
    draw_contact_sheet({"": [why for _, why in shown]}, preprocess, titles=titles).save(path)


def _write(out: Path, lines: Sequence[Line], sheet: Path, facts: Mapping[str, Any]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(vars(lines[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(line) for line in lines)
    write_text(out / TABLE, table.getvalue())
    counts = {"samples": len(lines), "disagree": sum(line.disagrees for line in lines), "shown": min(SHOWN, len(lines))}
    write_manifest(out / MANIFEST, [out / TABLE, sheet], {"schema": SCHEMA, **facts, **counts})
