"""Cues as a page: the table, and for each of them samples whose answer became the class of another, with a part of it."""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch
from PIL import ImageDraw
from torch import Tensor

from exitlens.delivery.explanations import load_template
from exitlens.delivery.pictures import draw_image
from exitlens.display import caption, data_uri, html_table
from exitlens.errors import OutputExistsError
from exitlens.io import write_text
from exitlens.model.network import ExitNet
from exitlens.types.cues import Cue, Cues
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import Preprocess

KEY = (
    "Taken over: answers that become the class of the sample that a part comes from. By chance: the same, when the part "
    "comes from a third sample. Shares are in per cent, exit by exit, the final one last."
)


def write_cues(cues: Cues, net: ExitNet, path: Path) -> None:
    """Write one HTML file that loads nothing, which must not exist."""
    if path.exists():
        raise OutputExistsError(f"out: {path} exists. Fix: choose another file.")
    head, *rows = cues.tabulate()
    count, title = len(cues.cues), "What early exits hang on more than the final exit"
    parts = [("", html_table(head, rows, f"{count} found; {cues.describe()}"))]
    parts += [(f"{cue.kind}: {cue.name}", _draw_cue(cue, net)) for cue in cues.cues]
    write_text(path, load_template("explanations.html.j2").render(title=title, parts=parts, key=KEY))


def _draw_cue(cue: Cue, net: ExitNet) -> str:
    rows = []
    for each in cue.examples:
        answers = (f"answer {each.before}", f"with the other's part: {each.after}", f"the other: {each.donor_class}")
        drawings = [_draw_sample(tensors, cue, net) for tensors in (each.sample, each.swapped, each.donor)]
        figures = "".join(caption(drawn, text) for drawn, text in zip(drawings, answers, strict=True))
        rows.append(f'<div style="display:flex;gap:12px;flex-wrap:wrap;margin-bottom:8px">{figures}</div>')
    shown = f"Answers of {exit_name(cue.exit, net.num_exits)}. It carries {', '.join(cue.classes)}."
    return f"<p>{escape(shown)}</p>{''.join(rows)}"


def _draw_sample(tensors: tuple[Tensor, ...], cue: Cue, net: ExitNet) -> str:
    modality, sample, preprocess = net.input_spec.modality, tensors[0].float(), net.info.preprocess
    place = cue.ignore if isinstance(cue.ignore, Tensor) else None
    if tokens := modality.name_locations(tensors, net.input_spec, preprocess):
        words = cue.ignore if isinstance(cue.ignore, tuple) else ()
        return " ".join(f"<b>{escape(token)}</b>" if token in words else escape(token) for token in tokens)
    if sample.ndim == 3 and len(sample) in (1, 3):
        picture = draw_image(sample, preprocess if isinstance(preprocess, Preprocess) else None)
        if place is not None:
            scale, at = picture.width / sample.shape[2], place.nonzero()
            (top, left), (bottom, right) = at.amin(0).tolist(), at.amax(0).tolist()
            box = (left * scale, top * scale, (right + 1) * scale - 1, (bottom + 1) * scale - 1)
            ImageDraw.Draw(picture).rectangle(box, outline="#d55e00", width=3)
        return f'<img src="{data_uri(picture)}" alt="{escape(cue.name)}" width="{picture.width}">'
    shape = sample.shape[1:] if place is None else place.shape
    shown = torch.ones(shape) if place is None else place.float()
    return modality.draw_map(sample, preprocess, shown / shown.sum().clamp_min(1), torch.zeros(shape), cue.name)
