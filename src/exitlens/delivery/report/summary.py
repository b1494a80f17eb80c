"""The summary of a report in three sentences: what early answers save, whether exits agree, whether maps are faithful."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from markupsafe import Markup

from exitlens.delivery.pages import load_template
from exitlens.delivery.report.subjects import Subject
from exitlens.model.network import ExitNet


def name_things(net: ExitNet) -> dict[str, str]:
    """What the page calls a sample of the network's data, and several."""
    return {"thing": net.info.modality.name, "things": net.info.modality.plural}


def summarize(
    subjects: Sequence[Subject], main: str, speed: Mapping[str, Any], plain_accuracy: float | None = None
) -> list[Markup]:
    """Writes sentences whose terms link to their definitions (``#w-...``) in the page.

    Args:
        subjects: the first is the one described.
        main: the test condition described.
        speed, plain_accuracy: as in ``write_report``.
    """
    first = subjects[0]
    sentences: Any = load_template("report_summary.html.j2").make_module(name_things(first.net))
    found = [sentences.saving(first.name, first.reports[main], plain_accuracy, list(speed.items())[:2])]
    rows = [(s.name, s.reports[main].exits[:-1]) for s in subjects]
    skills = [(name, [row.consistency["cc"]["skill"] for row in exits if row.consistency]) for name, exits in rows]
    if not all(values for _, values in skills):  # exits without maps
        return found
    if not any(math.isnan(skill) for _, values in skills for skill in values):  # one image: nothing to shuffle
        found.append(sentences.agreement([(name, values[0], mean(values)) for name, values in skills]))
    if main in first.faithfulness:
        others = [(s.name, s.faithfulness[main]) for s in subjects[1:] if main in s.faithfulness]
        found.append(sentences.faithfulness(first.faithfulness[main], others))
    return found
