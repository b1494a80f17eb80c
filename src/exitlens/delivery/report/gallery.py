"""The gallery of a report: test images or other samples, picked by rule, as every network sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.data.lazy import LazySet
from exitlens.data.splits import SampleSet
from exitlens.delivery.pictures import draw_heat, draw_image
from exitlens.delivery.report.subjects import Subject
from exitlens.display import data_uri, pick_exit_colour
from exitlens.types import ExitView, Preprocess
from exitlens.types.inputs import Inputs
from exitlens.types.outputs import exit_name, tell_apart
from exitlens.types.tasks import name_answers
from exitlens.workflow.explanation import explain_batch

POOL = 200  # images drawn at random from a set; the gallery is picked from these
IMAGES = 6  # per condition


@dataclass(frozen=True)
class GalleryRow:
    """A sample as every subject sees it; ``source`` and ``shape`` are of a picture, if it is one."""

    source: str
    shape: str
    truth: str
    condition: str
    views: Sequence[Mapping[str, Any]]


def build_gallery(subjects: Sequence[Subject], sets: Mapping[str, SampleSet]) -> list[GalleryRow]:
    """Picks ``IMAGES`` samples of each test set and explains them."""
    rows = []
    for condition, data in sets.items():
        for i in pick_images(subjects[0], data, IMAGES):
            chosen = data.subset(torch.tensor([i]))
            inputs, source, shape = chosen.inputs, "", ""
            truth = name_answers(chosen.labels[:1], data.classes)[0] or "none of the labels"
            if isinstance(data.preprocess, Preprocess) and isinstance(inputs, Tensor):
                shown = draw_image(inputs[0], data.preprocess)
                source, shape = data_uri(shown, photo=True), f"{shown.width} / {shown.height}"
            views = [_describe_view(s, inputs, source == "") for s in subjects]
            rows.append(GalleryRow(source, shape, truth, condition, views))
    return rows


def pick_images(subject: Subject, data: SampleSet, count: int) -> list[int]:
    """Indices of gallery images: of ``POOL`` drawn at random, the first that each exit answers, taking turns."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # folders are sorted by class
    pool = order[:POOL]
    answers = explain_batch(subject.net, data.subset(pool).inputs, subject.policy)
    pool = pool[_find_readable(data, pool)]  # reading them has told which are not
    queues = [[i for i, why in enumerate(answers) if why.answered == k] for k in range(subject.net.num_exits)]
    picked: list[int] = []
    while len(picked) < count and any(queues):
        picked += [queue.pop(0) for queue in queues if queue]
    return pool[sorted(picked[:count], key=lambda i: answers[i].answered)].tolist()


def _find_readable(data: SampleSet, rows: Tensor) -> Tensor:
    """Which ``rows`` can be read, as a mask: bad images that are skipped have no answer."""
    if not isinstance(data, LazySet):
        return torch.ones(len(rows), dtype=torch.bool)
    return torch.tensor([row not in data.unreadable for row in data.rows[rows].tolist()], dtype=torch.bool)


def _explain_rule(view: ExitView, is_final: bool) -> list[str]:
    """Confidence, threshold and gate, with enough digits to see which is larger."""
    if is_final:
        return [f"{view.confidence:.3f}"]
    confidence, threshold = tell_apart(view.confidence, view.threshold)
    said = [confidence, "threshold " + ("never" if view.threshold == math.inf else threshold)]
    if view.estimate is not None and view.limit is not None:
        guess, limit = tell_apart(view.estimate, view.limit)
        said.append(f"gate: {guess}, limit {'none' if view.limit == math.inf else limit}")
    return said


def _describe_view(subject: Subject, inputs: Inputs, is_drawn: bool) -> Mapping[str, Any]:
    """One sample's exits: heat maps to lay over its picture, or drawings of their own."""
    why = explain_batch(subject.net, inputs, subject.policy)[0]
    tiles = [
        {
            "name": exit_name(view.exit, why.num_exits),
            "colour": pick_exit_colour(view.exit, why.num_exits),
            "heat": "" if is_drawn else data_uri(draw_heat(view.attention)),
            "drawn": why.draw_exit(view) if is_drawn else "",
            "label": why.name_answer(view),
            "rule": _explain_rule(view, view.exit == why.num_exits - 1),
            "answered": view.exit == why.answered,
            "reached": view.exit <= why.answered,
        }
        for view in why.exits
    ]
    return {"name": subject.name, "tiles": tiles, "reason": why.reason}
