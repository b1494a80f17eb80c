"""The report: one self-contained HTML file that needs no network and no knowledge of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from exitlens.data.images import ImageSet
from exitlens.delivery import plots
from exitlens.delivery.pages import template
from exitlens.delivery.pictures import overlay, picture
from exitlens.errors import InputError, OutputExistsError
from exitlens.model.network import ExitNet
from exitlens.types import Explanation, Policy, Preprocess
from exitlens.types.display import data_uri
from exitlens.workflow.evaluation import Report
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.faithfulness import Faithfulness


@dataclass(frozen=True)
class Subject:
    """A trained network with its policy, and what was measured of it under each test condition, the main one first."""

    name: str
    net: ExitNet
    policy: Policy
    reports: Mapping[str, Report]
    faithfulness: Mapping[str, Faithfulness] = field(default_factory=dict)


@dataclass(frozen=True)
class GalleryRow:
    """One image as every subject sees it."""

    source: str
    truth: str
    condition: str
    views: Sequence[Mapping[str, Any]]


def write_report(
    path: Path,
    subjects: Sequence[Subject],
    gallery: Mapping[str, ImageSet],
    *,
    facts: Mapping[str, str],
    speed: Mapping[str, Any] | None = None,
    plain_accuracy: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the report of one network, or of two side by side.

    Args:
        path: of the HTML file.
        subjects: the network the report is about, then the one to compare with, if any; with equally many exits.
        gallery: test images by condition, to pick the gallery from.
        facts: what was trained, on what, with which seed and command: shown as a table.
        speed: measured speed (``Speed.to_dict()`` with ``accuracy_drop`` and ``cost``) by a title such as "batch size 1".
        plain_accuracy: accuracy of the plain backbone, trained without exits, in the main condition.
        overwrite: replace an existing file.

    Raises:
        OutputExistsError: if the file exists; InputError: for no subject or more than three.
    """
    if not 1 <= len(subjects) <= len(plots.COLOURS):
        raise InputError(f"subjects: expected 1 to {len(plots.COLOURS)}, got {len(subjects)}")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"report: {path} exists: choose another file")
    main = next(iter(subjects[0].reports))
    series = [plots.Series(s.name, s.reports[main], s.faithfulness.get(main)) for s in subjects]
    page = template("report.html.j2").render(
        subjects=subjects,
        main=main,
        names=plots.exit_names(len(series[0].report.exits)),
        colours=plots.COLOURS,
        summary=_summary(subjects, main, speed),
        facts=facts,
        speed=speed or {},
        plain_accuracy=plain_accuracy,
        plot_cost=Markup(plots.accuracy_cost(series, plain_accuracy)),
        plot_shares=Markup(plots.exit_shares(series)),
        plot_consistency=Markup(plots.consistency(series)),
        plot_deletion=Markup(plots.deletion(series)) if series[0].faithfulness else "",
        gallery=_gallery(subjects, gallery),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def _summary(subjects: Sequence[Subject], main: str, speed: Mapping[str, Any] | None) -> list[str]:
    """Three sentences with numbers: what it costs, whether it looks at the same thing, what the comparison shows."""
    report = subjects[0].reports[main]
    final = report.exits[-1].accuracy
    early = 100 * (1 - report.exit_shares[-1])
    cost = f"{early:.0f} % of the test images are answered before the final exit, at {100 * report.cost:.0f} % of the cost"
    if report.accuracy is not None and final is not None:
        cost += f" and {100 * report.accuracy:.1f} % accuracy (final exit alone: {100 * final:.1f} %)"
    name = subjects[0].name
    lines = [f"{name[:1].upper()}{name[1:]}: {cost}."]
    if speed:
        timed = " and ".join(f"{s['speedup']:.2f}x faster at {title}" for title, s in list(speed.items())[:2])
        lines.append(f"Measured on the clock against the plain backbone: {timed}.")
    skills = [row.consistency["cc"]["skill"] for row in report.exits[:-1] if "cc" in row.consistency]
    if skills:
        line = f"The first exit's attention agrees with the final exit's: skill {skills[0]:.2f} (0 is chance, 1 is the same)"
        if len(subjects) > 1:
            other = subjects[1].reports[main].exits[0].consistency["cc"]["skill"]
            line += f"; {subjects[1].name}, it is {other:.2f}"
        lines.append(line + ".")
    return lines


def _gallery(subjects: Sequence[Subject], sets: Mapping[str, ImageSet], per_condition: int = 6) -> list[GalleryRow]:
    rows = []
    for condition, data in sets.items():
        for i in pick(subjects[0], data, per_condition):
            chosen = data.subset(torch.tensor([i]))
            views = [_view(s, chosen.inputs) for s in subjects]
            rows.append(
                GalleryRow(
                    data_uri(picture(chosen.inputs[0], data.preprocess)),
                    data.classes[int(chosen.labels[0])],
                    condition,
                    views,
                )
            )
    return rows


def pick(subject: Subject, data: ImageSet, count: int) -> list[int]:
    """Indices of gallery images, chosen by rule: of the first 200, the first that each exit answers, in turn."""
    answers = explain_batch(subject.net, data.first(200).inputs, subject.policy)
    queues = [[i for i, why in enumerate(answers) if why.answered == k] for k in range(subject.net.num_exits)]
    picked: list[int] = []
    while len(picked) < count and any(queues):
        picked += [queue.pop(0) for queue in queues if queue]
    return sorted(picked[:count], key=lambda i: answers[i].answered)


def _view(subject: Subject, image: Tensor) -> Mapping[str, Any]:
    why: Explanation = explain_batch(subject.net, image, subject.policy)[0]
    preprocess = subject.net.info.preprocess
    base = picture(image[0], preprocess if isinstance(preprocess, Preprocess) else None)
    tiles = [
        {
            "source": data_uri(overlay(base, view.attention)),
            "label": why.name(view.label),
            "confidence": view.confidence,
            "threshold": view.threshold,
            "answered": view.exit == why.answered,
            "reached": view.exit <= why.answered,
        }
        for view in why.exits
    ]
    return {"name": subject.name, "tiles": tiles, "reason": why.reason}
