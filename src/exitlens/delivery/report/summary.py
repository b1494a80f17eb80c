"""The summary of a report in three sentences: what early answers save, whether exits agree, whether maps are faithful."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from markupsafe import Markup

from exitlens.delivery.report.subjects import Subject


def summarize(
    subjects: Sequence[Subject], main: str, speed: Mapping[str, Any], plain_accuracy: float | None = None
) -> list[Markup]:
    """Writes sentences whose terms link to their definitions (``#w-...``) in the page.

    Args:
        subjects: the first is the one described.
        main: the test condition described.
        speed, plain_accuracy: as in ``write_report``.
    """
    saving = _describe_saving(subjects[0], main, speed, plain_accuracy)
    return [one for one in (saving, _describe_agreement(subjects, main), _describe_faithfulness(subjects, main)) if one]


def _describe_saving(subject: Subject, main: str, speed: Mapping[str, Any], plain_accuracy: float | None) -> Markup:
    report = subject.reports[main]
    said = Markup("{}: <b>{:.0f} %</b> of the {:,} test images are answered before the final exit").format(
        subject.name, 100 * (1 - report.exit_shares[-1]), report.samples
    )
    said += Markup(", at <b>{:.0f} %</b> of the backbone's {}").format(100 * report.cost, _link_term("cost", "cost"))
    if report.accuracy is not None and report.accuracy_drop is not None:
        final = 100 * (report.accuracy + report.accuracy_drop)
        said += Markup(" and <b>{:.1f} %</b> {}").format(100 * report.accuracy, _link_term("accuracy", "accuracy"))
        plain = "" if plain_accuracy is None else f", plain backbone {100 * plain_accuracy:.1f} %"
        said += f" (final exit alone {final:.1f} %{plain})"
    timed = [
        Markup("<b>{:.2f} {}</b> at {}").format(one["speedup"], _link_term("speed", "times faster"), title)
        for title, one in list(speed.items())[:2]
    ]
    return said + (Markup("; measured on the clock, {}.").format(Markup(" and ").join(timed)) if timed else ".")


def _describe_agreement(subjects: Sequence[Subject], main: str) -> Markup:
    skills = [[row.consistency["cc"]["skill"] for row in s.reports[main].exits[:-1]] for s in subjects]
    if any(math.isnan(skill) for found in skills for skill in found):
        return Markup("")  # one image: nothing to shuffle
    said = Markup("Early exits look where the final exit looks with a {} of <b>{:.2f}</b> at exit 0").format(
        _link_term("skill", "skill"), skills[0][0]
    )
    said += Markup(" and <b>{:.2f}</b> on average (0: no more than another image's map, 1: the same map)").format(
        mean(skills[0])
    )
    for other, found in zip(subjects[1:], skills[1:], strict=True):
        said += f"; {other.name}, {found[0]:.2f} and {mean(found):.2f}"
    return said + "."


def _describe_faithfulness(subjects: Sequence[Subject], main: str) -> Markup:
    found = subjects[0].faithfulness.get(main)
    if found is None:
        return Markup("")
    said = Markup("{} the fifth of the picture that exit 0 attends to most lowers its answer's probability by ").format(
        _link_term("deletion", "Blanking")
    )
    said += Markup("<b>{:.2f}</b> ({:.2f} for a random fifth; final exit {:.2f})").format(
        found.deletion[0], found.deletion_random[0], found.deletion[-1]
    )
    if found.energy_in_mask is None:
        return said + "."
    object_ = _link_term("object", "on the object")
    said += Markup(", and <b>{:.0f} %</b> of its attention lies {}").format(100 * found.energy_in_mask[0], object_)
    for other in subjects[1:]:
        compared = other.faithfulness.get(main)
        if compared is not None and compared.energy_in_mask is not None:
            said += f" ({other.name}: {100 * compared.energy_in_mask[0]:.0f} %)"
    return said + "."


def _link_term(anchor: str, word: str) -> Markup:
    return Markup('<a href="#w-{}">{}</a>').format(anchor, word)
